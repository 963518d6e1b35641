"""The objects in the bucket, as names, bytes and types: where writers and readers meet."""
