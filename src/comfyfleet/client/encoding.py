"""Lossless compression of tensors' bytes for slow links: a filter, byte planes, then zstd.

A number differs little from the one of the same channel before it, and colours change together: so
numbers are subtracted as integers, what is left of green from what is left of red and blue (as WebP
and PNG's kin do), small differences of either sign made small numbers (zigzag, as in Protocol
Buffers), and all first bytes sent, then all second ones and so on (the "shuffle" filter of HDF5 and
Blosc). Between 0 and 1 floats are first counted in steps of 2**-25 where that is exact, as it is
for all that ComfyUI makes of a VAE's numbers: their own bits change in size where the exponent
does.

Pictures of a VAE that computes in bfloat16 take about two fifths of their size, those of one in
float32 nearly three quarters: half of their bits are noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from comfyfleet.errors import InputError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_Numbers = np.ndarray[Any, np.dtype[Any]]

#: What a client can ask for.
RAW, FILTERED = "raw", "filter-zstd"
#: Where pieces of a buffer may begin: whole pixels, whatever their numbers are.
ALIGNED = 96
#: Faster than any link below some gigabits; higher levels gain nothing on such data.
_LEVEL = 1
_UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
#: Numbers that are worked on at once: so many stay in a core's cache.
_BLOCK = 48 << 10
#: Steps between 0 and 1 in which floats are counted.
_STEPS = np.float32(1 << 25)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor's bytes are numbers: bytes of each, and how many channels take turns."""

    item_size: int = 1
    channels: int = 1

    @property
    def pixel_bytes(self) -> int:
        return self.item_size * self.channels


def compress(data: Bytes, layout: Layout) -> bytes:
    """Bytes of a tensor, from the beginning of one of its pixels."""
    size = len(data) // layout.pixel_bytes * layout.pixel_bytes
    pixels = _as_pixels(data[:size], layout)
    counts = layout.item_size == 4 and all(_is_counted(pixels[each]) for each in _blocks(pixels))
    planes = np.empty((layout.item_size, *pixels.T.shape), np.uint8)
    before = np.zeros((1, layout.channels), pixels.dtype)
    for each in _blocks(pixels):
        numbers = _counted(pixels[each]) if counts else pixels[each]
        small = _filtered(np.concatenate([before, numbers]))
        planes[:, :, each] = small.view(np.uint8).reshape(*small.shape, -1).transpose(2, 1, 0)
        before = numbers[-1:]
    whole = b"".join([bytes([counts]), planes.data, data[size:].data])
    return zstandard.ZstdCompressor(level=_LEVEL).compress(whole)


def decompress(data: bytes, layout: Layout, size: int) -> Bytes:
    """What ``compress`` was given, ``size`` bytes of it. Raises InputError if it is not that."""
    flat = np.frombuffer(_inflated(data, size + 1), np.uint8)
    counts, length = bool(flat[0]), size // layout.pixel_bytes * layout.pixel_bytes
    if counts and layout.item_size != 4:
        raise InputError("compressed data that makes no sense: counted steps that are no floats.")
    found = np.empty(size, np.uint8)
    found[length:] = flat[1 + length :]
    pixels = _as_pixels(found[:length], layout)
    planes = flat[1 : 1 + length].reshape(layout.item_size, *pixels.T.shape)
    last = np.zeros(layout.channels, pixels.dtype)
    for each in _blocks(pixels):
        small = np.ascontiguousarray(planes[:, :, each].transpose(2, 1, 0)).view(pixels.dtype)
        numbers = _restored(small[:, :, 0], last)
        last = numbers[-1]
        pixels[each] = _uncounted(numbers) if counts else numbers
    return found


def _as_pixels(data: Bytes, layout: Layout) -> _Numbers:
    numbers: _Numbers = data.view(_UNSIGNED[layout.item_size])
    return numbers.reshape(-1, layout.channels)


def _blocks(pixels: _Numbers) -> Iterator[slice]:
    length = _BLOCK // pixels.shape[1]
    for start in range(0, len(pixels), length):
        yield slice(start, min(len(pixels), start + length))


def _filtered(numbers: _Numbers) -> _Numbers:
    """Each row without the row before it, the first of which is dropped."""
    small: _Numbers = numbers[1:] - numbers[:-1]
    if small.shape[1] >= 3:
        small[:, 0] -= small[:, 1]
        small[:, 2] -= small[:, 1]
    sign = small >> small.dtype.type(8 * small.dtype.itemsize - 1)
    small <<= small.dtype.type(1)
    small ^= small.dtype.type(0) - sign
    return small


def _restored(small: _Numbers, last: _Numbers) -> _Numbers:
    """The rows that ``_filtered`` was given, after the row ``last``."""
    one = small.dtype.type(1)
    numbers: _Numbers = (small >> one) ^ (small.dtype.type(0) - (small & one))
    if small.shape[1] >= 3:
        numbers[:, 0] += numbers[:, 1]
        numbers[:, 2] += numbers[:, 1]
    numbers[0] += last
    for channel in range(numbers.shape[1]):
        np.cumsum(numbers[:, channel], dtype=numbers.dtype, out=numbers[:, channel])
    return numbers


def _is_counted(bits: _Numbers) -> bool:
    return bool(np.array_equal(_uncounted(_counted(bits)), bits))


def _counted(bits: _Numbers) -> _Numbers:
    """Floats in steps; what is none, or does not fit, gives anything."""
    with np.errstate(all="ignore"):
        steps: _Numbers = (bits.view(np.float32) * _STEPS).astype(np.int32).view(np.uint32)
    return steps


def _uncounted(steps: _Numbers) -> _Numbers:
    bits: _Numbers = (steps.view(np.int32).astype(np.float32) / _STEPS).view(np.uint32)
    return bits


def _inflated(data: bytes, size: int) -> bytes:
    try:
        announced = zstandard.frame_content_size(data)
        if announced != size:  # whoever announces more may fill our memory
            raise InputError(f"compressed data of {announced} bytes where {size} were expected.")
        found: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise InputError(f"compressed data that makes no sense: {error}") from None
    if len(found) != size:
        raise InputError(f"compressed data of {len(found)} bytes where {size} were expected.")
    return found
