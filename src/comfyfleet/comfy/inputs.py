"""Input files that other machines send for prompts: hashed as they come, kept while they are used.

They lie below ComfyUI's input folder, named by their content, as the next prompt may name them
again. What is not whole yet lies there as NAME.WORKER.part, so that it can go on after a break.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import folder_paths

from comfyfleet.client.files import DIGITS, FOLDER
from comfyfleet.comfy.keeping import make_room, require_room
from comfyfleet.errors import FleetError, InputError

_CHUNK_BYTES = 4 << 20
#: Parts whose digest so far is remembered; what is there of others is read once more.
_REMEMBERED = 64


class Inputs:
    """Takes in what comes to one worker. Thread-safe: one file does not wait for another."""

    def __init__(self, worker: str, queued: Callable[[], str]) -> None:
        """``worker``: whose parts these are, as others may have the same input folder.

        ``queued``: the prompts that run or wait here, as one text.
        """
        self._worker, self._queued = worker, queued
        self._lock = threading.Lock()
        #: Those that somebody uses just now, or did of late.
        self._parts: WeakValueDictionary[Path, _Part] = WeakValueDictionary()
        self._recent: deque[_Part] = deque(maxlen=_REMEMBERED)

    def take(self, name: str, size: int, start: int, data: bytes) -> int:
        """Add the next bytes of an input file; how many of its bytes are here then.

        Those that are not the next ones change nothing, so no bytes at all are a question. Slow
        where much is here that this process has not seen come. Raises FleetError if the file cannot
        be kept, InputError if it is too large or not what its name says.
        """
        target = Path(folder_paths.get_input_directory()) / FOLDER / name
        part = self._part_of(target)
        with part.lock, _told(target.parent):
            if target.is_file() and _size(target) == size:
                _mark_used(target)
                return size
            target.parent.mkdir(parents=True, exist_ok=True)
            part.catch_up()
            if not data:
                make_room(target.parent, size - part.size, part.path, self._queued)
            require_room(target.parent, size - part.size)
            if start == part.size and (data or not size):
                part.append(data)
            return part.size if part.size < max(size, start) else part.finish(target, size)

    def _part_of(self, target: Path) -> _Part:
        path = target.with_name(f"{target.name}.{self._worker}.part")
        with self._lock:
            part = self._parts.get(path)
            if part is None:
                part = self._parts[path] = _Part(path)
            self._recent.append(part)
            return part


class _Part:
    """What has come of one file, and its SHA-256. To be used with its lock held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        #: Of so many bytes.
        self.size, self._digest = 0, hashlib.sha256()

    def catch_up(self) -> None:
        """Read what this process has not seen come. Raises OSError."""
        here = _size(self.path)
        if here < self.size:  # it was cleared away meanwhile
            self._forget()
        if here > self.size:
            with self.path.open("rb") as file:
                file.seek(self.size)
                while chunk := file.read(_CHUNK_BYTES):
                    self._add(chunk)

    def append(self, data: bytes) -> None:
        """Raises OSError; what was written all the same is caught up with."""
        with self.path.open("ab") as file:
            file.write(data)
        self._add(data)

    def finish(self, target: Path, size: int) -> int:
        """Give it its name, if it is what that says; its size. Raises InputError, OSError."""
        size_is, digest = self.size, self._digest.hexdigest()
        self._forget()
        if size_is == size and digest[:DIGITS] == target.stem:
            os.replace(self.path, target)
            return size
        self.path.unlink()
        raise InputError(f"{target.name} arrived damaged, or was changed on its way; run it again.")

    def _add(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _mark_used(path: Path) -> None:
    """Its time of access alone: packs look at the time of change, whether to load it again."""
    with suppress(OSError):  # another user's, in a folder that machines share
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FleetError(
            f"an input file cannot be kept in {folder}: {error.strerror or error}. Look at "
            "rights, and at room on the disk."
        ) from None
