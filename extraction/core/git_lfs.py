"""Pointers of Git LFS, which a clone without it has in the place of large files.

In: the first bytes of a file. Out: an error that says what to do. Guarantee: no other file is refused. Cost: none.
"""

from .errors import DamagedData

_POINTER = b"version https://git-lfs"


def refuse_pointer(head: bytes, where: object) -> None:
    """Raise DamagedData that names the file `where` if its first bytes, `head`, are those of a pointer."""
    if head.startswith(_POINTER):
        raise DamagedData(f"{where}: a Git LFS pointer in the place of the file: run `git lfs pull` in its folder")
