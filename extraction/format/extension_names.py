"""The names of extensions, of a run and of a folder of streams: `extensions/0001.json` and so on.

In: a location. Out: the names of its extensions, in order. Guarantee: a gap raises DamagedData. Cost: one listing of
the folder.
"""

from ..core.errors import DamagedData, ObjectNotFound
from ..storage import Storage

_FOLDER = "extensions/"


def extension_name(number: int) -> str:
    """Return the name of an extension, counted from 1."""
    return f"{_FOLDER}{number:04d}.json"


def list_extensions(storage: Storage) -> list[str]:
    """Return the names of the extensions at a location. Raises DamagedData if one is missing."""
    try:
        names = [info.name for info in storage.list(_FOLDER)]
    except ObjectNotFound:  # the hub says so of a folder that it does not have
        return []
    for number, name in enumerate(names, 1):
        if name != extension_name(number):
            raise DamagedData(f"{storage}/{extension_name(number)} is missing, and {name} is there: restore it")
    return names
