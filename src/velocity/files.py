"""Files and folders that are whole or do not exist: written aside, synced, renamed. It knows no other module."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """The file holds `text`, whole or not at all, even after a power cut."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a file to write, which then takes the place of `path`; on an error it is gone, `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise located(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then takes the place of `folder`; on an error it is gone, `folder` as it was.

    What a killed process left beside it is removed: only one process at a time may write `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for torn in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        sync_all(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise located(error, folder) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(folder.parent)


def located(error: OSError, path: Path) -> OSError:
    """The error; with the path where it names none, as those of a write."""
    return error if error.filename else type(error)(error.errno, error.strerror, str(path))


def sync_all(folder: Path) -> None:
    """All below the folder, and its list of names, lie on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """The file's content, or the folder's list of names, lies on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
