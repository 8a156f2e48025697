"""How long input files from other machines stay: what nobody has used for long goes first."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from comfyfleet.errors import InputError

#: Of all of them together; more stay only while they are used.
_KEPT_BYTES = 16 << 30
#: Each counts as so much at least: a disk has room for so many files only.
_LEAST_BYTES = 1 << 20
#: Of the disk, which stays free: ComfyUI itself has to save.
_SPARE_BYTES = 1 << 30
#: How long they stay without being used: what is whole, and what was broken off.
_WHOLE_S, _PART_S = 30 * 86400.0, 86400.0
#: So long nothing is taken away: its prompt may be on its way, or run in another process.
_GRACE_S = 3600.0
#: Names of ours, as ``client.files`` makes them. All else in the folder is somebody's own.
_OURS = re.compile(r"([0-9a-f]{40}(?:\.[a-z0-9_-]{1,16})?)(\..+\.part)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    path: Path
    #: What a prompt names it by.
    name: str
    is_part: bool
    size: int
    #: For how many seconds nobody has used it.
    idle_s: float

    @property
    def is_stale(self) -> bool:
        return self.idle_s > (_PART_S if self.is_part else _WHOLE_S)

    @property
    def counted(self) -> int:
        return max(self.size, _LEAST_BYTES)


def make_room(folder: Path, size: int, wanted: Path, queued: Callable[[], str]) -> None:
    """Let go of what is stale, and of what was used longest ago until ``size`` bytes have room.

    Never of ``wanted``, nor of what was used within the hour or is named in ``queued``, the text
    of prompts that run or wait. Raises OSError if the folder cannot be read.
    """
    kept = sorted(_kept_in(folder), key=lambda each: -each.idle_s)
    total = size + sum(each.counted for each in kept)
    idle = [each for each in kept if each.idle_s > _GRACE_S and each.path != wanted]
    named = queued() if idle else ""
    for each in idle:
        wants_room = total > _KEPT_BYTES or size > _free(folder)
        if each.name not in named and (each.is_stale or wants_room):
            with suppress(OSError):  # open, on some systems; or another user's
                each.path.unlink(missing_ok=True)
                total -= each.counted


def require_room(folder: Path, size: int) -> None:
    """Raises InputError if so many bytes would fill the disk."""
    free = _free(folder)
    if size > free:
        raise InputError(
            f"the disk of {folder} is too full for an input file of {size / 1e9:.1f} GB: "
            f"{(free + _SPARE_BYTES) / 1e9:.1f} GB are free, and {_SPARE_BYTES / 1e9:.1f} GB must "
            "stay so. Make room there."
        )


def _kept_in(folder: Path) -> Iterator[_Kept]:
    now = time.time()
    for path in folder.iterdir():
        ours = _OURS.fullmatch(path.name)
        with suppress(FileNotFoundError):
            if ours and path.is_file() and not path.is_symlink():
                state = path.stat()
                yield _Kept(
                    path=path,
                    name=ours[1],
                    is_part=ours[2] is not None,
                    size=state.st_size,
                    idle_s=now - max(state.st_atime, state.st_mtime),
                )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free - _SPARE_BYTES
