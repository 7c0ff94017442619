"""Files and folders that are whole or do not exist: written aside, synced, renamed; and whom else they are open to."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from velocity.secrets import scrub


def write_atomically(path: Path, text: str) -> None:
    """The file holds `text` without the secrets in it, whole or not at all, even after a power cut."""
    with whole_file(path) as temporary:
        temporary.write_text(scrub(text), encoding="utf-8")


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


def sweep(folder: Path, name: str = "") -> None:
    """What killed processes left in the folder of files that they wrote, or of `name` alone, is gone. Nobody writes."""
    for torn in folder.glob(f".{glob.escape(name)}.*.tmp" if name else ".*.tmp"):
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """The folder exists. A new one is closed to others, and open to the group as the umask says; an empty one, too."""
    folder.mkdir(mode=0o770, parents=True, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not any(folder.iterdir()):
        with suppress(PermissionError):  # it is another user's
            folder.chmod(stat.S_IMODE(mode) & 0o7770)


def why_untrusted(folder: Path, *, shared: bool = False) -> str | None:
    """Who else may have changed what lies in the folder; None where nobody may.

    Its owner and root may. Root trusts every owner: in a container it is nobody else. A folder that is `shared` may be
    another user's. Where the file system keeps neither owners nor modes nothing can be said.
    """
    status = folder.stat()
    why = _distrust(status.st_uid, status.st_mode, os.geteuid(), shared=shared)
    return why if why and _keeps_modes(folder) else None


def _distrust(owner: int, mode: int, user: int, *, shared: bool) -> str | None:
    if not shared and user != 0 and owner not in (0, user):
        return f"it belongs to another user ({owner})"
    return "anybody may write into it" if mode & stat.S_IWOTH else None


def _keeps_modes(folder: Path) -> bool:
    """False where a folder that we make with other modes looks the same: a mount of a Windows share, some volumes."""
    try:
        made = Path(tempfile.mkdtemp(prefix=".modes-", dir=folder))
    except OSError:
        return True
    status = made.stat()
    made.rmdir()
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH


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
