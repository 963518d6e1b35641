"""The models: configurations, one file for each architecture, attention, and the strict weight loader."""
