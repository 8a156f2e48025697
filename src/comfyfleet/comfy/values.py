"""Values of ComfyUI as a skeleton and raw buffers: any dtype, no PNG, no 8 bit, no pickled tensors.

A value that leaves its process (IMAGE, MASK, LATENT, AUDIO, CONDITIONING, VIDEO, lists of them)
is a nesting of dicts, lists and tuples with tensors at the leaves. ``pack`` takes the tensors out
as flat byte arrays, which a transport moves without copying; ``unpack`` puts them back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from comfy_api.latest import Input, InputImpl, Types

from comfyfleet.errors import InputError
from comfyfleet.work import Packed, TensorRef, VideoRef

Buffer: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_PLAIN = (str, int, float, bool, bytes, type(None))


def pack(value: Any, name: str = "value") -> Packed:
    """Take the tensors out of ``value``; nothing is copied for contiguous CPU tensors.

    Raises InputError naming the place of anything that cannot leave its process (a model, say).
    """
    buffers: list[Buffer] = []
    return Packed(_strip(value, buffers, name), buffers)


def _strip(value: Any, buffers: list[Buffer], path: str) -> Any:
    if isinstance(value, torch.Tensor):
        return _take(value, buffers)
    if isinstance(value, dict):
        return {key: _strip(item, buffers, f"{path}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        items = (_strip(item, buffers, f"{path}[{i}]") for i, item in enumerate(value))
        return type(value)(items)
    if isinstance(value, Input.Video):
        return VideoRef(_strip(_components(value), buffers, path))
    if isinstance(value, _PLAIN) or getattr(value, "dtype", None) not in (None, np.dtype(object)):
        return value
    raise InputError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot leave the "
        "process that made it. What can: tensors, numbers, text, and dicts and lists of them "
        "(IMAGE, MASK, LATENT, AUDIO, CONDITIONING, VIDEO). Collect after the node that uses it."
    )


def _take(tensor: torch.Tensor, buffers: list[Buffer]) -> TensorRef:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    buffers.append(flat.numpy())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRef(len(buffers) - 1, dtype, tuple(tensor.shape))


def _components(video: Any) -> dict[str, Any]:
    parts = vars(video.get_components())
    return {**parts, "frame_rate": str(parts["frame_rate"])}


def unpack(packed: Packed, *, copy: bool = True) -> Any:
    """Put the tensors back.

    With ``copy=False`` they are views of the transport's memory, which may be read-only shared
    memory: the caller copies before it lets anyone write (writing would end the process).
    """
    place = _copied if copy else _viewed
    tensors = [place(buffer) for buffer in packed.buffers]
    return _restore(packed.skeleton, lambda ref: _shaped(tensors[ref.buffer], ref))


def _viewed(buffer: Buffer) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns that writing to a read-only buffer is undefined: that is our contract above.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(buffer)


def _copied(buffer: Buffer) -> torch.Tensor:
    return _viewed(buffer).clone()


def _shaped(flat: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    dtype = getattr(torch, ref.dtype)
    if flat.numel() == 0:
        return torch.empty(ref.shape, dtype=dtype)
    return flat.view(dtype).reshape(ref.shape)


def _restore(value: Any, tensor: Callable[[TensorRef], torch.Tensor]) -> Any:
    if isinstance(value, TensorRef):
        return tensor(value)
    if isinstance(value, VideoRef):
        return _video(_restore(value.components, tensor))
    if isinstance(value, dict):
        return {key: _restore(item, tensor) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_restore(item, tensor) for item in value)
    return value


def _video(parts: dict[str, Any]) -> Any:
    frame_rate = Fraction(parts["frame_rate"])
    components = Types.VideoComponents(**{**parts, "frame_rate": frame_rate})
    return InputImpl.VideoFromComponents(components)
