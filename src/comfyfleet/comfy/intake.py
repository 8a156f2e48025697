"""Models that another machine's fleet copies to this ComfyUI.

What has come lies beside its place as NAME.DIGEST.part, so that a copy can go on after a break or a
restart, and so that two contents never mix. The file gets its name once its SHA-256 is right.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyfleet.client.background import in_background
from comfyfleet.client.digests import Digests, sha256_of
from comfyfleet.errors import InputError

#: What a copy leaves free on the disk: results and caches of this ComfyUI need some.
RESERVE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A file that shall be here."""

    path: Path
    size: int
    sha256: str

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{self.sha256[:16]}.part")


class Intake:
    """Takes in one piece at a time. Used on one event loop."""

    def __init__(self, digests: Digests, on_new: Callable[[], None]) -> None:
        """``on_new`` is called when a model has got its name."""
        self._digests = digests
        self._on_new = on_new
        self._lock = asyncio.Lock()
        #: What is being read as a whole, by its part.
        self._checks: dict[Path, asyncio.Task[None]] = {}

    async def state(self, wanted: Incoming) -> dict[str, Any]:
        """``start``: how many bytes are here; ``state``: open, checking or whole.

        Raises InputError if the file cannot be taken, or arrived damaged.
        """
        async with self._lock:
            return await self._state(wanted)

    async def add(self, wanted: Incoming, start: int, data: bytes) -> dict[str, Any]:
        """The next bytes; the state after them. Those that are not the next ones are left out.

        Raises InputError as ``state`` does, and for bytes beyond the end.
        """
        if start + len(data) > wanted.size:
            raise InputError(f"bytes {start} to {start + len(data)} are beyond {wanted.size}.")
        async with self._lock:
            found = await self._state(wanted)
            if found != {"start": start, "state": "open"} or not data:
                return found
            await asyncio.to_thread(_append, wanted.part, data)
            return await self._state(wanted)

    async def _state(self, wanted: Incoming) -> dict[str, Any]:
        checking = {"start": wanted.size, "state": "checking"}
        check = self._checks.get(wanted.part)
        if check is not None:
            if not check.done():
                return checking
            del self._checks[wanted.part]
            check.result()
        with _told(wanted.path):
            if wanted.path.exists():
                known = self._known(wanted)
                if known:
                    return {"start": wanted.size, "state": "whole"}
                self._begin(wanted, self._look)
                return checking
            here = _size(wanted.part)
            if here == wanted.size:
                self._begin(wanted, self._finish)
                return checking
            _check_room(wanted, here)
        return {"start": here, "state": "open"}

    def _known(self, wanted: Incoming) -> bool:
        """Is what has the name known to be the file? Raises InputError if it is another one."""
        known = self._digests.known(wanted.path)
        if wanted.path.stat().st_size != wanted.size or known not in ("", wanted.sha256):
            raise InputError(
                f"{wanted.path.name} is there already, with other content; rename or remove it "
                "there first."
            )
        return bool(known)

    def _begin(self, wanted: Incoming, work: Callable[[Incoming], None]) -> None:
        self._checks[wanted.part] = asyncio.ensure_future(in_background(work, wanted))

    def _look(self, wanted: Incoming) -> None:
        with _told(wanted.path):
            self._digests.of(wanted.path)

    def _finish(self, wanted: Incoming) -> None:
        with _told(wanted.path):
            if sha256_of(wanted.part) != wanted.sha256:
                wanted.part.unlink()
                raise InputError(f"{wanted.path.name} arrived damaged; copy it again.")
            if wanted.path.exists():
                return  # somebody put it there meanwhile: the next look says what it is
            wanted.part.rename(wanted.path)
            self._digests.keep(wanted.path, wanted.sha256)
        self._on_new()


def _append(part: Path, data: bytes) -> None:
    with _told(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            file.write(data)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_room(wanted: Incoming, here: int) -> None:
    folder = next(each for each in wanted.path.parents if each.is_dir())
    free = shutil.disk_usage(folder).free
    if wanted.size - here + RESERVE_BYTES > free:
        raise InputError(
            f"the disk there is too full for {wanted.path.name}: {_gb(free)} GB are free, "
            f"{_gb(wanted.size - here)} GB are needed and {_gb(RESERVE_BYTES)} GB must stay free. "
            "Make room there."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path.name[:80]} cannot be kept there: {error.strerror or error}. Look at its model "
            "folder: rights, and room on the disk."
        ) from error
