"""Make streams from a source.

In: `--source` and the flags of a dataset. Out: `manifest.json` and, for materialised streams, Parquet files. Guarantee:
the same source and flags give the same bytes. Cost: that of the parts:

    `sources`           the files of a source, by `find_files`, `file_kinds`, `splits` and `configurations`
    `row_files`         the rows of these files; `read_log` pins the files and skips damaged rows
    `materialize`       streams that copy the rows
    `assign_row_groups` streams that point into the source's Parquet files, by `footers` and `content_digests`
    `mix_streams`       streams that copy records of other streams, in shares
    `publish`           the manifest
    `check`             the proof that streams are disjoint, complete and unchanged
"""
