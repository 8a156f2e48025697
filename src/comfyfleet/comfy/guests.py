"""What another machine's fleet leaves here for its prompts, and what it has not fetched yet.

Values that come are files named by their content; they outlive their prompt, as the next one may
name them again. Values that go stay in memory until they are fetched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.client.codec import from_json, layouts, to_json
from comfyfleet.client.encoding import FILTERED, RAW, Layout, compress
from comfyfleet.comfy import returns, shipped
from comfyfleet.comfy.values import pack
from comfyfleet.errors import FleetError, InputError
from comfyfleet.work import Packed

_NAME = re.compile(r"[0-9a-f]{64}")
#: Of all values that came, whole or not; the oldest go first.
_KEPT_BYTES = 16 << 30
#: Of the disk; ComfyUI itself must be able to save.
_SPARE_BYTES = 1 << 30
#: Results that nobody has fetched: their fleet may be gone. A worker runs one unit at a time.
_KEPT_RESULTS = 4
#: Prompts whose values are held: their fleet may be gone without a word.
_KEPT_PROMPTS = 16


class Guests:
    """Used on ComfyUI's event loop, but for what is said to be slow, which any thread may do."""

    def __init__(self, folder: Path, kept_bytes: int = _KEPT_BYTES) -> None:
        self._folder = folder
        self._kept_bytes = kept_bytes
        #: Pieces come in several threads.
        self._lock = threading.Lock()
        self._results: OrderedDict[str, Packed] = OrderedDict()
        self._held: OrderedDict[str, None] = OrderedDict()
        #: Pieces come on threads, and may come twice.
        self._adding = threading.Lock()

    # Values that come.

    def blob_start(self, name: str, size: int) -> int:
        """How many bytes of a value of this size are here; all of them if it is whole."""
        if self._whole(name).is_file():
            return size
        part = self._part(name)
        return part.stat().st_size if part.is_file() else 0

    def add(self, name: str, start: int, size: int, data: bytes) -> int:
        """Bytes of a value from ``start`` on; how many of it are here now. Slow.

        Raises InputError if they fit nowhere, or if the whole is not what its name says;
        FleetError if the disk is full.
        """
        with self._adding:
            return self._add(name, start, size, data)

    def _add(self, name: str, start: int, size: int, data: bytes) -> int:
        here = self.blob_start(name, size)
        if here > size:  # it was begun with another size
            self._part(name).unlink()
            here = 0
        if start != here and here:
            return here  # it was sent twice, as its answer did not arrive: go on there
        if start != here or start + len(data) > size or size > self._kept_bytes:
            raise InputError(
                f"bytes {start} to {start + len(data)} of {size} came where {here} are here; "
                "go on there."
            )
        part = self._part(name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(data), part)
            with part.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise FleetError(
                f"values cannot be kept in {self._folder}: {error.strerror}. Free disk space there."
            ) from None
        if here + len(data) == size:
            self._complete(name, part)
        return here + len(data)

    def hold(self, prompt_id: str, described: Mapping[str, Any]) -> None:
        """Give a prompt its values. Slow.

        Raises InputError if one is not here, FleetError if they do not fit into the memory.
        """
        self._require_memory(name for each in described.values() for name in _buffers_of(each))
        values = {digest: self._packed(each) for digest, each in described.items()}
        shipped.hold(prompt_id, values)
        self._held[prompt_id] = None
        while len(self._held) > _KEPT_PROMPTS:
            shipped.drop(self._held.popitem(last=False)[0])

    # Values that go.

    def manifest(self, prompt_id: str) -> dict[str, Any]:
        """What a prompt has returned: a skeleton (None: nothing) and the sizes of its buffers."""
        returned = returns.take(prompt_id)
        if returned is not None:
            self._results[prompt_id] = pack(returned, "the result")
            while len(self._results) > _KEPT_RESULTS:
                self._results.popitem(last=False)
        packed = self._results.get(prompt_id)
        if packed is None:
            return {"skeleton": None, "sizes": []}
        return {"skeleton": to_json(packed), "sizes": [len(each) for each in packed.buffers]}

    def piece(
        self, prompt_id: str, buffer: int, start: int, stop: int, encoding: str
    ) -> memoryview:
        """Bytes of a result. Slow. Raises InputError if there are none such."""
        packed = self._results.get(prompt_id)
        if packed is None or not 0 <= buffer < len(packed.buffers):
            raise InputError(f"there is no buffer {buffer} of a result of prompt {prompt_id!r}.")
        whole = packed.buffers[buffer]
        if not 0 <= start <= stop <= min(len(whole), start + PIECE_BYTES):
            raise InputError(
                f"bytes {start} to {stop}: give at most {PIECE_BYTES} of {len(whole)}."
            )
        if encoding == RAW:
            return memoryview(whole)[start:stop]
        if encoding != FILTERED:
            raise InputError(f"encoding {encoding!r}: choose {RAW} or {FILTERED}.")
        layout = dict(layouts(packed.skeleton)).get(buffer, Layout())
        return memoryview(compress(whole[start:stop], layout))

    def forget(self, prompt_id: str) -> None:
        """Let go of a prompt's values, both ways."""
        returns.take(prompt_id)
        self._results.pop(prompt_id, None)
        if prompt_id in self._held:
            del self._held[prompt_id]
            shipped.drop(prompt_id)

    # Files.

    def _complete(self, name: str, part: Path) -> None:
        with part.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != name:
            part.unlink()
            raise InputError(f"value {name[:12]} arrived damaged; send it again.")
        part.rename(self._whole(name))

    def _make_room(self, size: int, wanted: Path) -> None:
        """Let go of what was used longest ago, whole or not, but for what is wanted.

        Raises OSError if the disk would be full then.
        """
        with self._lock:
            kept = sorted(self._files(), key=lambda each: each[0])
            total = size + sum(bytes_ for _, bytes_, _ in kept)
            free = shutil.disk_usage(self._folder).free - _SPARE_BYTES
            for _, bytes_, path in kept:
                if total <= self._kept_bytes and size <= free:
                    return
                if path != wanted:
                    path.unlink(missing_ok=True)
                    total, free = total - bytes_, free + bytes_
        if size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each was used last, and its size; those that just go are left out."""
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                state = path.stat()
                yield state.st_mtime_ns, state.st_size, path

    def _packed(self, described: Any) -> Packed:
        buffers = [self._read(name) for name in _buffers_of(described)]
        skeleton = from_json(described.get("skeleton"), [len(each) for each in buffers])
        return Packed(skeleton, buffers)

    def _require_memory(self, names: Iterable[Any]) -> None:
        """One that is named often is read as often."""
        size, free = sum(map(self._size, names)), psutil.virtual_memory().available
        if size > free:
            raise FleetError(
                f"values of {size / 1e9:.1f} GB do not fit into the memory that is free here "
                f"({free / 1e9:.1f} GB). Use smaller batches, or a worker with more memory."
            )

    def _size(self, name: Any) -> int:
        path = self._whole(name)
        if not path.is_file():
            raise InputError(f"value {str(name)[:12]} is not here any more; send it again.")
        return path.stat().st_size

    def _read(self, name: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        path = self._whole(name)
        path.touch()  # what is used stays longest
        return np.fromfile(path, np.uint8)

    def _whole(self, name: Any) -> Path:
        return self._folder / f"{_checked(name)}.blob"

    def _part(self, name: Any) -> Path:
        return self._folder / f"{_checked(name)}.part"


def _buffers_of(described: Any) -> list[Any]:
    """The names of a value's buffers. Raises InputError for what is no value."""
    if not isinstance(described, dict) or not isinstance(described.get("buffers"), list):
        raise InputError('a value is {"skeleton": ..., "buffers": [names]}.')
    found: list[Any] = described["buffers"]
    return found


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{str(name)[:80]!r} is no name of a value: give its SHA-256 in hex.")
    return name
