"""Datasets: what turns a source into streams, one file and one line of `DATASETS` for each, and what they share.

`command` is what a dataset tells the command line, `publish` the manifest, `references` into Parquet files or `rows` in
files of our own, `sources` which files are read (`places`, `kinds`, `splits`, `configurations`), `row_files` their rows,
`reading` what came of them, `footers` and `contents` of many files, `tracking` of progress, `check` of what was made.
"""

from ..streams.build.materialize import Row, publish_rows
from ..streams.build.publish import Origin, OtherStreams, Published

__all__ = ["DATASETS", "Origin", "OtherStreams", "Published", "Row", "publish_rows"]

# The name of each command -> where its `Dataset` is; imported when it is asked for.
DATASETS = {
    "ai2-arc": "extraction.datasets.ai2_arc:DATASET",
    "arc-agi": "extraction.datasets.arc_agi.dataset:DATASET",
    "fineweb": "extraction.datasets.fineweb:DATASET",
    "text": "extraction.datasets.text:DATASET",
}
