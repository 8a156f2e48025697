"""A packed value as JSON and raw buffers: what crosses a network is never unpickled.

JSON has no tuples, bytes, tensors or arrays: such a value is an object of one entry whose key says
what it is, and so is every dict ({"dict": [[key, value], ...]}).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from comfyfleet.client.encoding import Layout
from comfyfleet.errors import InputError
from comfyfleet.work import Packed, TensorRef, VideoRef

#: Nobody nests values deeper; Python would run out of stack at about 1000.
_MAX_DEPTH = 100

#: What nonsense makes Python and numpy raise.
_NONSENSE = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)
#: Torch has at most 64 dimensions; and a length that is a number of thousands of digits takes
#: hours to multiply.
_MAX_DIMENSIONS, _MAX_LENGTH = 64, 1 << 48

#: Bytes per element, by torch's names.
_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4,
    "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


def item_size(dtype: str) -> int:
    """Bytes of one element. Raises InputError for a type that does not travel."""
    if dtype not in _SIZES:
        raise InputError(f"tensors of type {dtype!r} do not travel; known: {', '.join(_SIZES)}.")
    return _SIZES[dtype]


def to_json(packed: Packed) -> Any:
    """The skeleton as JSON. Raises InputError for what has no place there."""
    return _encode(packed.skeleton, 0)


def from_json(data: Any, sizes: Sequence[int]) -> Any:
    """The skeleton that ``to_json`` wrote, for buffers of these sizes in bytes.

    Raises InputError for anything else: it may come from anybody.
    """
    try:
        return _decode(data, sizes, 0)
    except _NONSENSE as error:
        told = f"{type(error).__name__}: {str(error)[:200]!r}"
        raise InputError(f"a value that makes no sense: {told}") from None


def layouts(skeleton: Any) -> Iterator[tuple[int, Layout]]:
    """The buffers of a skeleton's tensors, and what their bytes are."""
    if isinstance(skeleton, TensorRef):
        channels = skeleton.shape[-1] if skeleton.shape else 1
        # Complex numbers are two, one after the other.
        item = min(item_size(skeleton.dtype), 8)
        yield skeleton.buffer, Layout(item, channels if channels in (2, 3, 4) else 1)
    children = skeleton.values() if isinstance(skeleton, dict) else skeleton
    components = getattr(skeleton, "components", None)
    if components is not None:
        children = components.values()
    if isinstance(skeleton, dict | list | tuple) or components is not None:
        for child in children:
            yield from layouts(child)


def _encode(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InputError(f"a value nested deeper than {_MAX_DEPTH} cannot travel.")
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if type(value) is list:
        return [_encode(item, depth + 1) for item in value]
    return _tagged(value, depth)


def _tagged(value: Any, depth: int) -> dict[str, Any]:
    if type(value) is tuple:
        return {"tuple": [_encode(item, depth + 1) for item in value]}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[_encode(k, depth + 1), _encode(v, depth + 1)] for k, v in pairs]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, TensorRef):
        return {"tensor": [value.buffer, value.dtype, list(value.shape)]}
    if isinstance(value, VideoRef):
        return {"video": _encode(value.components, depth + 1)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
        array = np.ascontiguousarray(value)
        data = base64.b64encode(array.tobytes()).decode()
        return {"array": [array.dtype.str, list(value.shape), data, isinstance(value, np.generic)]}
    raise InputError(f"a {type(value).__qualname__} cannot travel over a network.")


def _decode(data: Any, sizes: Sequence[int], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(data, list):
        return [_decode(item, sizes, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    match tag:
        case "tuple":
            return tuple(_decode(item, sizes, depth + 1) for item in content)
        case "dict":
            pairs = ([_decode(part, sizes, depth + 1) for part in pair] for pair in content)
            return {key: value for key, value in pairs}
        case "float":
            return float(content)
        case "bytes":
            return base64.b64decode(content, validate=True)
        case "tensor":
            return _tensor(content, sizes)
        case "video":
            components = _decode(content, sizes, depth + 1)
            return _video(components)
        case "array":
            return _array(*content)
    raise ValueError(f"unknown kind {tag!r}")


def _video(components: Any) -> VideoRef:
    """Raises ValueError unless it has parts, and frames per second that somebody can count."""
    if not isinstance(components, dict):
        raise ValueError("a video without parts")
    if not re.fullmatch(r"\d{1,9}(/\d{1,9})?", str(components["frame_rate"])):
        raise ValueError(f"frame rate {components['frame_rate']!r}")
    return VideoRef(components)


def _tensor(content: Any, sizes: Sequence[int]) -> TensorRef:
    """Raises ValueError unless shape and type are just what the buffer holds."""
    buffer, dtype, shape = content
    lengths = (buffer, *shape)
    if len(shape) > _MAX_DIMENSIONS or not all(
        type(each) is int and 0 <= each < _MAX_LENGTH for each in lengths
    ):
        raise ValueError(f"tensor {content!r}")
    if math.prod(shape) * item_size(dtype) != sizes[buffer]:
        raise ValueError(f"tensor {content!r} in a buffer of {sizes[buffer]} bytes")
    return TensorRef(buffer, dtype, tuple(shape))


def _array(dtype: str, shape: list[int], text: str, is_scalar: bool) -> Any:
    kind = np.dtype(dtype)
    if kind.kind not in "biufcSU":
        raise ValueError(f"array of {dtype!r}")
    array = np.frombuffer(base64.b64decode(text, validate=True), kind).reshape(shape).copy()
    return array[()] if is_scalar else array
