"""Nested values as a text plus their tensors.

The text is JSON, never pickle: whoever reads it can execute nothing. JSON's own scalars stand for
themselves, all else is a list that begins with its kind: ``["tuple", 1, ["tensor", 0]]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from comfyfleet.errors import ParallelError

#: The keys and indices that lead to a value, from the root on.
Path = tuple[object, ...]

_PLAIN = (type(None), bool, int, float, str)
_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "size": torch.Size}
_DTYPES = {str(it): it for it in vars(torch).values() if isinstance(it, torch.dtype)}

# Kind in the text: type, how it is written, how it is read.
_WRITTEN: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "uuid": (UUID, str, UUID),
    "dtype": (torch.dtype, str, _DTYPES.__getitem__),
    "device": (torch.device, str, torch.device),
}
_KINDS = {kind: tag for tag, kind in _SEQUENCES.items()} | {
    kind: tag for tag, (kind, _, _) in _WRITTEN.items()
}

# Tensors by identity: place in the list, path, tensor.
_Found = dict[int, tuple[int, Path, Tensor]]


class Unsendable(ParallelError):
    """A value that cannot be sent to another process; ``path`` says where, ``type`` what it is."""

    def __init__(self, path: str, type: type) -> None:
        super().__init__(path, type)
        self.path = path
        self.type = type

    def __str__(self) -> str:
        return (
            f"{self.path} is of type {self.type.__module__}.{self.type.__qualname__}; only None, "
            "bool, int, float, str, bytes, UUID, tensors, their dtype, device and Size, and lists, "
            "tuples and dicts of these can be sent to another worker"
        )


def encode(tree: Any) -> tuple[bytes, list[Tensor]]:
    """Return a tree as a text and the tensors that it names by their index, of any shape.

    A tensor that is in the tree twice is listed once: ComfyUI's controls repeat theirs.
    Types must be exact, so that what is decoded equals what was encoded: subclasses, such as
    numpy's float64 or a named tuple, raise Unsendable as all unknown types do.
    """
    found: _Found = {}
    spec = _pack(tree, (), found)
    return json.dumps(spec).encode(), [tensor for _, _, tensor in found.values()]


def decode(spec: bytes, tensors: Sequence[Tensor]) -> Any:
    """Return the tree of ``encode``, with these tensors in the place of the original ones.

    Devices are read as they were written, even if this machine has no such device.
    """
    return _unpack(json.loads(spec), tensors)


def sendable(tree: Any) -> bool:
    """Return whether ``encode`` takes this tree."""
    try:
        _pack(tree, (), {})
    except Unsendable:
        return False
    return True


def leaves(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with the path of its first place, in the order of ``encode``.

    Raises Unsendable as ``encode`` does.
    """
    found: _Found = {}
    _pack(tree, (), found)
    for _, path, tensor in found.values():
        yield spell(path), tensor


def spell(path: Path) -> str:
    """Return a path as Python would index it: ``kwargs["control"]["input"][0]``."""
    if not path:
        return "the value"
    first, rest = path[0], path[1:]
    bare = isinstance(first, str) and first.isidentifier()
    return (str(first) if bare else f"[{_literal(first)}]") + "".join(
        f"[{_literal(key)}]" for key in rest
    )


def _literal(key: object) -> str:
    return json.dumps(key, ensure_ascii=False) if type(key) is str else repr(key)


def _pack(value: Any, path: Path, found: _Found | None) -> Any:
    """Return what stands for a value in the text; found gathers tensors, keys have none."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Tensor and found is not None:
        return ["tensor", found.setdefault(id(value), (len(found), path, value))[0]]
    if kind is dict:
        return ["dict", *(_pack_item(key, item, path, found) for key, item in value.items())]
    tag = _KINDS.get(kind)
    if tag is None:
        raise Unsendable(spell(path), kind)
    if tag in _WRITTEN:
        return [tag, _WRITTEN[tag][1](value)]
    return [tag, *(_pack(item, (*path, i), found) for i, item in enumerate(value))]


def _pack_item(key: Any, item: Any, path: Path, found: _Found | None) -> list[Any]:
    path = (*path, key)
    return [_pack(key, path, None), _pack(item, path, found)]


def _unpack(node: Any, tensors: Sequence[Tensor]) -> Any:
    if type(node) in _PLAIN:
        return node
    tag, *items = node
    if tag == "tensor":
        return tensors[items[0]]
    if tag == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in items}
    if tag in _WRITTEN:
        return _WRITTEN[tag][2](items[0])
    return _SEQUENCES[tag]([_unpack(item, tensors) for item in items])
