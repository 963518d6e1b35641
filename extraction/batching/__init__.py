"""Tokenizer, token selection and packing: records in, packed batches out."""
