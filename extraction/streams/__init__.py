"""Streams of records: the manifest, the Parquet files it pins, the row filter, reading a stream."""
