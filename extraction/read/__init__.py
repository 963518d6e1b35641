"""Reading a run: by batch or record, shuffled, as torch or datasets, exported."""
