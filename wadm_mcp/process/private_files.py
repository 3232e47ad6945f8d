"""Files that only the user of the process can read: other users of the machine have no business with them.

POSIX only; on Windows the folders of a user are private. This module imports nothing heavy, since it is loaded first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

_FOLDERS: Final = ("journal", "archive", "import", "demo", "replay")
_FILES: Final = ("wadm.sqlite*", "recorder.lock", ".env")
"""What WADM keeps in its data directory."""
_MARKS: Final = ("recorder.lock", "wadm.sqlite")
"""What shows that a folder is the data directory of a WADM: other programs have folders of these names too."""
_OTHERS: Final = 0o077
"""The rights of the group and of everybody else."""


def create_private() -> None:
    """From now on, what this process creates is its user's alone."""
    if os.name == "posix":
        os.umask(_OTHERS)


def make_private(folder: Path) -> None:
    """Create the data directory if it is missing, and withdraw the rights of other users to what WADM keeps in it.

    What belongs to another user, what WADM does not know and a folder that WADM has not used yet stay as they are; so does the folder
    itself where it has something unknown in it, and what a file system without rights does not let change. `OSError` if the folder cannot
    be created or read.
    """
    folder.mkdir(mode=0o777 & ~_OTHERS, parents=True, exist_ok=True)
    if os.name != "posix":
        return
    entries = list(folder.iterdir())
    if entries and not any(path.name in _MARKS for path in entries):
        return
    known = [path for path in entries if path.name in _FOLDERS or any(fnmatch(path.name, pattern) for pattern in _FILES)]
    if len(known) == len(entries):
        _restrict(folder)
    for path in known:
        for each in _with_content(path):
            _restrict(each)


def _with_content(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        yield from path.rglob("*")


def _restrict(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return  # another process on the same folder has deleted it
    if found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS:
        with suppress(PermissionError):
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
