"""The datasets: each turns a source into streams, in one file or folder, and has one line in `DATASETS`.

In: the name of a command. Out: the place of its `Dataset` (`command`), which `create_dataset_streams.py` imports when
the command is used. `streams/build` has the parts that datasets share. Cost: a dataset's own.
"""

# Name of a command -> its `Dataset`, imported on first use.
DATASETS = {
    "ai2-arc": "extraction.datasets.ai2_arc:DATASET",
    "arc-agi": "extraction.datasets.arc_agi.dataset:DATASET",
    "chat": "extraction.datasets.chat:DATASET",
    "fineweb": "extraction.datasets.fineweb:DATASET",
    "text": "extraction.datasets.text:DATASET",
    "tokens": "extraction.datasets.tokens:DATASET",
}
