"""Whether this machine is one of Google's, where its metadata server is, and in which zone it runs.

In: the variable GCE_METADATA_HOST of Google's own libraries, and the name that the firmware gives the machine. Out: a
host name, a zone. Cost: one small file, and one request.
"""

import functools
import os
import re
from pathlib import Path

_SECONDS = 2.0  # that the server may take; it is on the same machine


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


@functools.cache
def zone() -> str:
    """Return the zone of a machine of Google's, such as `us-central1-a`; nothing for another machine, or if unknown."""
    host = metadata_host()
    if host is None:
        return ""
    from http.client import HTTPException
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(f"http://{host}/computeMetadata/v1/instance/zone", headers={"Metadata-Flavor": "Google"})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=_SECONDS) as answer:
            found = answer.read(200).decode("ascii").rpartition("/")[2]
    except (OSError, HTTPException, ValueError):
        return ""
    return found if re.fullmatch(r"[a-z0-9-]+", found) else ""
