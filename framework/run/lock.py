"""The lock of a run folder: while one process trains in it, no other may begin to."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from framework.errors import ConfigError

LOCK = ".lock"
_held: dict[Path, int] = {}  # descriptors, by file


def lock_folder(folder: Path) -> None:
    """Lock a folder until `release_locks`, or until this process is gone, however it ends.

    Args:
        folder: It must be there.

    Raises:
        ConfigError: A living process holds the lock: which, on which host, and since when.
    """
    path = (folder / LOCK).absolute()
    if path in _held:
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"run.root: {path} cannot be written ({error.strerror}): give another") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 4096).decode(errors="replace")
        os.close(descriptor)
        raise ConfigError(f"run.id: {folder} is in use {_described(holder)}") from None
    except OSError as error:
        os.close(descriptor)
        print(f"warning: {folder} cannot be locked ({error.strerror}): start nothing else in it meanwhile")
        return
    _held[path] = descriptor
    note = {"host": socket.gethostname(), "pid": os.getpid(), "start": datetime.now().isoformat(timespec="seconds")}
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(note).encode(), 0)


def release_locks() -> None:
    """Give up all locks. The files stay: another process may be about to lock them."""
    while _held:
        os.close(_held.popitem()[1])


def _described(holder: str) -> str:
    remedy = "wait until it has ended, or give another --run.id"
    with suppress(ValueError, KeyError, TypeError):
        note = json.loads(holder)
        return f"by process {note['pid']} on {note['host']} since {note['start']}: {remedy}"
    return f"by another process: {remedy}"


os.register_at_fork(after_in_child=release_locks)  # a loader's worker that outlives a killed run must not hold its lock
