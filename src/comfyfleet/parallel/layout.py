"""Which tokens of which stream are where: uneven shards, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyfleet.split import largest_remainder


@dataclass(frozen=True, slots=True)
class Stream:
    """A sequence of tokens on the ranks of a sequence group, in rank order.

    It is split, or ``whole`` on every rank: a text of one word cannot be split, and modules do not
    expect to get no tokens at all.
    """

    sizes: tuple[int, ...]
    whole: bool = False

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.sizes[0] if self.whole else sum(self.sizes)

    def start(self, rank: int) -> int:
        """The first token of this rank."""
        return 0 if self.whole else sum(self.sizes[:rank])

    def elsewhere(self, rank: int) -> int:
        """Tokens that this rank does not have."""
        return self.length - self.sizes[rank]

    def kept(self, rank: int) -> Stream:
        """This rank's tokens as if they were all, and everywhere: nothing of them travels."""
        return Stream((self.sizes[rank],) * len(self.sizes), whole=True)

    def shard(self, full: Tensor, dim: int, rank: int) -> Tensor:
        """This rank's part of a tensor that has all tokens along ``dim``; a view."""
        return full.narrow(dim, self.start(rank), self.sizes[rank])


def split_stream(length: int, weights: Sequence[float]) -> Stream:
    """A stream of ``length`` tokens, shared by weight; whole if a rank would get none."""
    sizes = tuple(largest_remainder(length, weights))
    return Stream(sizes) if all(sizes) else Stream((length,) * len(sizes), whole=True)


@dataclass(frozen=True, slots=True)
class Joint:
    """Streams behind one another in one tensor, as joint attention sees them.

    On each rank lie its parts of the streams, in the streams' order; the canonical order is that
    of one device: each stream whole, then the next.
    """

    streams: tuple[Stream, ...]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return sum(stream.length for stream in self.streams)

    def local(self, rank: int) -> int:
        """Tokens on one rank."""
        return sum(stream.sizes[rank] for stream in self.streams)

    def split(self) -> Joint:
        """Without the streams that are whole everywhere: what has to travel."""
        return Joint(tuple(stream for stream in self.streams if not stream.whole))

    def shard(self, full: Tensor, dim: int, rank: int) -> Tensor:
        """This rank's tokens of a tensor in canonical order."""
        return _cat([full.narrow(dim, *segment) for segment in self.segments(rank)], dim)

    def segments(self, rank: int) -> list[tuple[int, int]]:
        """Start in canonical order and size of each part that a rank holds, in its own order."""
        found, start = [], 0
        for stream in self.streams:
            found.append((start + stream.start(rank), stream.sizes[rank]))
            start += stream.length
        return found

    def of_ranks(self, ranks: Sequence[int]) -> Joint:
        """The tokens of some of the ranks alone, as a layout over these ranks."""
        return Joint(
            tuple(
                Stream(tuple(stream.sizes[rank] for rank in ranks), stream.whole)
                for stream in self.streams
            )
        )

    def travelling(self, local: Tensor, dim: int, rank: int) -> Tensor:
        """The rows of this rank's tensor that other ranks do not have."""
        if not any(stream.whole for stream in self.streams):
            return local
        parts = local.split([stream.sizes[rank] for stream in self.streams], dim)
        kept = [p for p, stream in zip(parts, self.streams, strict=True) if not stream.whole]
        return _cat(kept, dim) if kept else local.narrow(dim, 0, 0)

    def join(self, travelled: Sequence[Tensor], local: Tensor, dim: int, rank: int) -> Tensor:
        """The tensor in canonical order, from every rank's ``travelling`` rows and this one's."""
        shape = list(local.shape)
        shape[dim] = self.length
        full = local.new_empty(shape)
        offsets, mine, start = [0] * len(travelled), 0, 0
        for stream in self.streams:
            if stream.whole:
                full.narrow(dim, start, stream.length).copy_(local.narrow(dim, mine, stream.length))
            for source, rows in enumerate(() if stream.whole else travelled):
                size = stream.sizes[source]
                part = full.narrow(dim, start + stream.start(source), size)
                part.copy_(rows.narrow(dim, offsets[source], size))
                offsets[source] += size
            start, mine = start + stream.length, mine + stream.sizes[rank]
        return full

    def rows(self, *, split_only: bool) -> Tensor:
        """Canonical positions of all tokens, or of those of the split streams."""
        parts, start = [torch.empty(0, dtype=torch.long)], 0
        for stream in self.streams:
            if not (split_only and stream.whole):
                parts.append(torch.arange(start, start + stream.length))
            start += stream.length
        return torch.cat(parts)

    def positions(self, ranks: Sequence[int], *, split_only: bool) -> Tensor:
        """Canonical positions of the tokens of some ranks, in the order of ``of_ranks(ranks)``."""
        parts = [torch.empty(0, dtype=torch.long)]
        for i, stream in enumerate(self.streams):
            for rank in ranks[:1] if stream.whole else ranks:
                start, size = self.segments(rank)[i]
                if not (split_only and stream.whole):
                    parts.append(torch.arange(start, start + size))
        return torch.cat(parts)


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
