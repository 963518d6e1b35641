"""Datasets: what turns a source into streams, one file for each dataset, and what they share.

`publish` the manifest, `references` into Parquet files or `rows` in files of our own, `sources` where files are found,
`footers` of many files, `tracking` of progress, `check` of what was made.
"""

from .publish import Origin, OtherStreams, Published
from .rows import Row, publish_rows

__all__ = ["Origin", "OtherStreams", "Published", "Row", "publish_rows"]
