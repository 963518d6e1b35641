"""A run in the terms of other libraries, one file for each; a file imports its library."""
