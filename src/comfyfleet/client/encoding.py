"""Lossless compression of tensors' bytes for slow links: byte planes, then zstd.

The bytes of floating-point numbers are alike where their significance is: all first bytes, then all
second ones and so on compress far better than number by number (the "shuffle" filter of HDF5 and
Blosc; F. Alted, "Why modern CPUs are starving", 2010).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard

from comfyfleet.errors import InputError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

#: What a client can ask for.
RAW, SHUFFLED = "raw", "shuffle-zstd"
#: Fast enough for any link below a gigabit; higher levels hardly gain on such data.
_LEVEL = 3


def compress(data: Bytes, item_size: int) -> bytes:
    """Bytes of numbers of ``item_size`` bytes each."""
    whole = len(data) // item_size * item_size
    planes = np.ascontiguousarray(data[:whole].reshape(-1, item_size).T).tobytes()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(planes + data[whole:].tobytes())


def decompress(data: bytes, item_size: int, size: int) -> Bytes:
    """What ``compress`` was given, ``size`` bytes of it. Raises InputError if it is not that."""
    try:
        planes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise InputError(f"compressed data that makes no sense: {error}") from None
    if len(planes) != size:
        raise InputError(f"{len(planes)} bytes where {size} were announced.")
    whole = size // item_size * item_size
    found = np.empty(size, np.uint8)
    flat = np.frombuffer(planes, np.uint8)
    found[:whole] = flat[:whole].reshape(item_size, -1).T.reshape(-1)
    found[whole:] = flat[whole:]
    return found
