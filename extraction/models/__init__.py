"""The models: their families, the parts that these are made of, configurations, and the strict weight loader."""
