"""The proof that every token of every record is stored exactly once."""
