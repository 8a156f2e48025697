"""Messages between the leader and one follower: nested values with tensors, nothing executable.

What does not change from step to step (text conditioning) is sent once and then named.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comfyfleet.parallel.comm import Group, World
from comfyfleet.parallel.tree import decode, encode, leaves

#: Tensors start at multiples of this, so that bytes can be viewed as any dtype.
_ALIGN = 16
#: Different tensors remembered per place: positive and negative prompts, regions, two models.
#: A place that never repeats itself (the latent) is not remembered any more after as many.
_KEPT = 8


class Memory:
    """What the leader has sent before. One for all followers, as they get the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._misses: Counter[str] = Counter()
        self._next = 0

    def name(self, place: str, tensor: Tensor) -> int | None:
        """The number of an equal tensor that was here before, or a new one; None if not kept.

        Compared by value: whatever computes a conditioning makes a new tensor at each step.
        """
        if self._misses[place] > _KEPT:
            return None
        same = [key for key in self._kept if key[0] == place]
        for key in same:
            if _equal(self._kept[key], tensor):
                self._misses[place] = 0
                self._kept.move_to_end(key)
                return key[1]
        self._misses[place] += 1
        if self._misses[place] > _KEPT:
            for key in same:
                del self._kept[key]
            return None
        if len(same) >= _KEPT:
            del self._kept[same[0]]
        self._next += 1
        self._kept[place, self._next] = tensor.clone()
        return self._next

    @property
    def numbers(self) -> frozenset[int]:
        """The tensors that can still be named."""
        return frozenset(number for _, number in self._kept)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, written once for all who get it.

    ``numbers`` are those by which the memory knows its tensors, ``known`` all that it has.
    """

    spec: str
    tensors: Sequence[Tensor]
    numbers: Sequence[int | None]
    known: frozenset[int]

    @classmethod
    def of(cls, message: Any, memory: Memory | None = None) -> Letter:
        """Write a message; without a memory nothing is kept. Raises Unsendable."""
        spec, tensors = encode(message)
        if memory is None:
            return cls(spec.decode(), tensors, [None] * len(tensors), frozenset())
        numbers = [memory.name(*leaf) for leaf in leaves(message)]
        return cls(spec.decode(), tensors, numbers, memory.numbers)


class Wire:
    """One end of the line between the leader (rank 0) and one follower."""

    def __init__(self, world: World, other: int) -> None:
        ranks = (0, other or world.place.rank)
        self._group: Group = world.line(ranks)
        self._other = ranks.index(other)
        #: Numbers of tensors that the other end has, and tensors that it sent, by number.
        self._told: set[int] = set()
        self._kept: dict[int, Tensor] = {}

    def send(self, letter: Letter) -> int:
        """Send a letter, but for the tensors that the other end has; the bytes of those sent."""
        tensors, numbers = letter.tensors, letter.numbers
        new = [number is None or number not in self._told for number in numbers]
        forget = self._told - letter.known
        header = {
            "spec": letter.spec,
            "tensors": [_describe(*entry) for entry in zip(tensors, numbers, new, strict=True)],
            "forget": sorted(forget),
        }
        data = _pack([tensor for tensor, sent in zip(tensors, new, strict=True) if sent])
        self._told |= {number for number in numbers if number is not None}
        self._told -= forget
        self._send(json.dumps(header).encode(), data)
        return int(data.numel())

    def receive(self) -> Any:
        """The next message; waits for it."""
        sizes = self._group.receive(2, torch.int64, self._other).tolist()
        text = self._group.receive(sizes[0], torch.uint8, self._other).cpu().numpy().tobytes()
        header = json.loads(text)
        data = self._group.receive(sizes[1], torch.uint8, self._other) if sizes[1] else None
        for number in header["forget"]:
            del self._kept[number]
        return decode(header["spec"].encode(), self._unpack(header["tensors"], data))

    def _send(self, header: bytes, data: Tensor) -> None:
        sizes = torch.tensor([len(header), data.numel()])
        self._group.send(sizes, self._other)
        self._group.send(torch.frombuffer(bytearray(header), dtype=torch.uint8), self._other)
        if data.numel():
            self._group.send(data, self._other)

    def _unpack(self, entries: Sequence[dict[str, Any]], data: Tensor | None) -> list[Tensor]:
        found, start = [], 0
        for entry in entries:
            if not entry["sent"]:
                found.append(self._kept[entry["number"]].clone())
                continue
            assert data is not None or not entry["bytes"]
            part = torch.empty(0, dtype=torch.uint8) if data is None else data
            part = part[start : start + entry["bytes"]]
            start += _aligned(entry["bytes"])
            tensor = part.view(getattr(torch, entry["dtype"])).view(entry["shape"])
            found.append(tensor)
            if entry["number"] is not None:
                self._kept[entry["number"]] = tensor.clone()
        return found


def _describe(tensor: Tensor, number: int | None, sent: bool) -> dict[str, Any]:
    return {
        "number": number,
        "sent": sent,
        "bytes": tensor.numel() * tensor.element_size(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as bytes behind one another, on the device of the first."""
    if not tensors:
        return torch.empty(0, dtype=torch.uint8)
    device = tensors[0].device
    size = sum(_aligned(tensor.numel() * tensor.element_size()) for tensor in tensors)
    data, start = torch.empty(size, dtype=torch.uint8, device=device), 0
    for tensor in tensors:
        part = data[start : start + tensor.numel() * tensor.element_size()]
        part.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        start += _aligned(part.numel())
    return data


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _equal(kept: Tensor, tensor: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself and any dtype can be compared."""
    alike = kept.shape == tensor.shape and kept.dtype == tensor.dtype
    if not alike or kept.device != tensor.device:
        return False
    return bool(torch.equal(_bytes(kept), _bytes(tensor)))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))  # one element may have stride 0
    return flat.view(torch.uint8)
