"""Whether this machine is one of Google's, and where its metadata server is.

In: the variable GCE_METADATA_HOST of Google's own libraries, and the name that the firmware gives the machine. Out: a
host name. Cost: one small file.
"""

import os
from pathlib import Path


def metadata_host() -> str | None:
    """Return the host of the metadata server, None on a machine that is not Google's."""
    named = os.environ.get("GCE_METADATA_HOST")
    if named:
        return named
    try:
        product = Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return None
    return "metadata.google.internal" if product.startswith("Google") else None
