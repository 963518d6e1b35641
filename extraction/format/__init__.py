"""What the bucket holds, as names, bytes and types: where writers and readers meet."""
