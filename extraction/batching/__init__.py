"""Records become token ids, and these become packed batches."""
