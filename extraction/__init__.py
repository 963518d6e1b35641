"""Activations of language models over many documents, on machines that vanish: the library behind the commands.

Which modules there are, in the way of the data. Streams, made once:
    `datasets`       a source becomes streams; one file for each dataset
    `manifest`       what the streams are made of, pinned
    `parquet`        Parquet files where they lie
    `column_chunks`  their columns, read whole and compared with the manifest
    `columns`        which of their columns make a record
    `selection`      which of their rows are records
    `sampling`       what the first records say of all

A worker:
    `worker`         puts together what follows, for one stream
    `elastic`        chooses the stream, where workers have no numbers
    `config`         what a run is, and its fingerprint
    `streams`        the records of a stream, from any position
    `tokenization`   records become token ids
    `positions`      which tokens are stored
    `packing`        token ids become batches of rows
    `forward`        the step on the devices: batches become activations
    `models`         what the step is made of: families, their parts, weights; one file for each family
    `compile_cache`  compiled steps that are kept
    `pipeline`       the loop over batches
    `stored`         what is kept of a hook point: values, scales, statistics
    `not_finite`     how many stored values are NaN and infinite, and how that is said
    `shards`         a batch becomes the bytes of a data object
    `writer`         stores and commits, on a thread of its own
    `commits`        commits as names and bytes; what chains them is checkpoint.py beside this folder
    `storage`        create-only objects; one file for each backend
    `preemption`     being told to stop
    `progress`       what a person sees of it
    `metrics`        what Prometheus sees
    `attempts`       notes in its folder

Beside and after the workers:
    `plan`           what a run will take
    `standing`       where each stream stands
    `status`         who is where, at which pace
    `audit`          the proof of exactly once
    `report`         a picture of a run
    `parity`         the distance from the Hugging Face model
    `reference_ids`  token ids on other paths than ours
    `objects`        a data object, read in part or whole
    `statistics`     what all data objects say of a hook point
    `reader`         a run, read by batch, record or hook point
    `shuffle`        in random order
    `adapters`       as datasets of other libraries
    `exports`        in the layouts of other tools

What any of them may use: `errors`, `records`, `logs`, `prefetch`, `strict_json`, `versions`, `faults`.
"""
