"""The rows of feature maps on several ranks: each has a strip of them, and gets what it lacks.

What crosses the border between two strips is here: the rows that a convolution reads, the sums of
a norm, the keys and values of an attention over all pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.comm import Group

#: Feature maps [batch, channels, rows, columns] -> feature maps.
Layer: TypeAlias = Callable[[Tensor], Tensor]

#: ComfyUI's attentions that take fewer queries than keys. Others compute all, and give more.
_FEWER_QUERIES = frozenset({"pytorch_attention", "xformers_attention"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a convolution reads: output row o begins at ``o * stride - padding``."""

    #: Rows from the first to the last that one output row reads.
    rows: int
    stride: int = 1
    #: Zeros that the convolution itself puts above and below all that it is given.
    padding: int = 0

    @property
    def is_local(self) -> bool:
        """Does each row need itself only?"""
        return (self.rows, self.stride, self.padding) == (1, 1, 0)

    def outputs(self, edges: Sequence[int]) -> list[int]:
        """The edges of the strips behind it: an output row is where its middle was, or near it."""
        end = (edges[-1] + 2 * self.padding - self.rows) // self.stride + 1
        return [*(min(-(-edge // self.stride), end) for edge in edges[:-1]), end]

    def inputs(self, outputs: range, height: int) -> tuple[range, int]:
        """The rows to give it for these output rows, and how many it gives before them.

        Its own zeros must touch none of those that are kept, but at the true edges.
        """
        extra = min(outputs.start, -(-self.padding // self.stride))
        end = (outputs.stop - 1) * self.stride - self.padding + self.rows
        return range((outputs.start - extra) * self.stride, min(height, end)), extra


class Strips:
    """One rank's side of a forward. ``edges``: where the strip of each rank of the group begins.

    All ranks of the group must call the same methods in the same order.
    """

    def __init__(self, group: Group, edges: Sequence[int]) -> None:
        self._group = group
        #: Of the feature maps that the last method gave; the last edge is their height.
        self._edges = list(edges)

    @property
    def own(self) -> range:
        """The rows that this rank has."""
        return self._strips()[self._group.index]

    def convolved(self, layer: Layer, window: Window, x: Tensor, below: int = 0) -> Tensor:
        """This rank's strip of what the convolution gives.

        ``below``: so many rows of zeros were added to ``x`` already; only those at the bottom of
        the picture count.
        """
        is_last = self._group.index == len(self._group) - 1
        if below and not is_last:
            x = x[:, :, :-below]
        self._catch_up(x.shape[2] - below * is_last)
        self._edges[-1] += below
        edges = window.outputs(self._edges)
        outputs = [range(*pair) for pair in pairwise(edges)]
        if not all(outputs):
            raise CannotSplit(f"{self._edges[-1]} rows are too few for {len(self._group)} devices.")
        inputs = [window.inputs(rows, self._edges[-1]) for rows in outputs]
        extra, count = inputs[self._group.index][1], len(outputs[self._group.index])
        x = self._exchanged(x, [rows for rows, _ in inputs])
        self._edges = edges
        return layer(x)[:, :, extra : extra + count]

    def normalized(self, x: Tensor, num_groups: int, eps: float) -> Tensor:
        """``x`` by the mean and the deviation of each group of channels over all rows.

        In float32 at least, and around a number near the mean: large offsets cost no digits.
        """
        self._catch_up(x.shape[2])
        flat = x.reshape(x.shape[0], num_groups, -1)
        flat = flat.to(torch.promote_types(x.dtype, torch.float32))
        near = flat.mean(2, keepdim=True)
        flat = flat - near
        mean, variance = self._merged(near, *torch.var_mean(flat, 2, correction=0, keepdim=True))
        return flat.sub_(mean).mul_((variance + eps).rsqrt()).view(x.shape)

    def attended(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """This rank's rows of an attention over all pixels."""
        keys, values = self.whole(torch.cat([k, v], dim=1)).chunk(2, dim=1)
        if getattr(attention, "__name__", "") in _FEWER_QUERIES:
            return attention(q, keys, values)
        out = attention(self.whole(q), keys, values)
        return out[:, :, self.own.start : self.own.stop]

    def whole(self, x: Tensor) -> Tensor:
        """All rows, on all ranks."""
        return self._gathered(x, range(len(self._group)))

    def collected(self, x: Tensor) -> Tensor:
        """All rows on the first rank; no others anywhere else."""
        return self._gathered(x, range(1))

    def _catch_up(self, rows: int) -> None:
        """Take note of what happened in between: rows repeated, or folded into channels."""
        own = len(self.own)
        assert all(edge * rows % own == 0 for edge in self._edges), (self._edges, own, rows)
        self._edges = [edge * rows // own for edge in self._edges]

    def _strips(self) -> list[range]:
        return [range(*pair) for pair in pairwise(self._edges)]

    def _exchanged(self, x: Tensor, wanted: Sequence[range]) -> Tensor:
        """The rows that this rank wants; it gives each other rank what that one wants."""
        me, strips = self._group.index, self._strips()
        given = [_common(strips[me], rows) for rows in wanted]
        taken = [_common(strip, wanted[me]) for strip in strips]
        own = given[me]
        given[me] = taken[me] = range(0)
        row, first = x[:, :, :1].numel(), strips[me].start
        data = torch.cat([_rows(x, rows, first).flatten() for rows in given])
        sizes, into = ([row * len(rows) for rows in each] for each in (given, taken))
        parts = list(self._group.all_to_all(data, sizes, into).split(into))
        shaped = [_shaped(part, x, len(rows)) for part, rows in zip(parts, taken, strict=True)]
        shaped[me] = _rows(x, own, first)
        return torch.cat(shaped, dim=2)

    def _gathered(self, x: Tensor, receivers: range) -> Tensor:
        """All rows on some ranks, by index in the group."""
        self._catch_up(x.shape[2])
        num_ranks, row = len(self._group), x[:, :, :1].numel()
        sizes = [x.numel() if i in receivers else 0 for i in range(num_ranks)]
        gets = self._group.index in receivers
        into = [row * len(strip) if gets else 0 for strip in self._strips()]
        data = x.flatten().repeat(len(receivers))
        parts = self._group.all_to_all(data, sizes, into).split(into)
        return torch.cat([_shaped(part, x, part.numel() // row) for part in parts], dim=2)

    def _merged(self, near: Tensor, variance: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, from ``near`` on, and variance over all ranks, each of which has its own.

        ``rest``: how far this rank's mean is from ``near``. (Chan, Golub and LeVeque's merge.)
        """
        own = torch.stack([near, rest, variance])
        sizes = [own.numel()] * len(self._group)
        found = torch.stack(self._group.all_gather(own.flatten(), sizes)).view(-1, *own.shape)
        nears, rests, variances = found.unbind(1)
        counts = [len(strip) / self._edges[-1] for strip in self._strips()]
        shares = torch.tensor(counts, dtype=own.dtype, device=own.device).view(-1, 1, 1, 1)
        means = (nears - nears[0]) + rests
        mean = (shares * means).sum(0)
        merged = (shares * (variances + (means - mean).square())).sum(0)
        return (nears[0] - near) + mean, merged


def _common(a: range, b: range) -> range:
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))


def _rows(x: Tensor, rows: range, first: int) -> Tensor:
    """Rows by their place in the picture, of a strip that begins at ``first``."""
    return x[:, :, max(0, rows.start - first) : max(0, rows.stop - first)]


def _shaped(part: Tensor, like: Tensor, rows: int) -> Tensor:
    shape: Any = (*like.shape[:2], rows, like.shape[3])
    return part.view(shape)
