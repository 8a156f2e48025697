"""The ranks that share one sequence: a ring of Ulysses groups, and this rank's place in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from comfyfleet.parallel.comm import Group, World
from comfyfleet.parallel.dims import ParallelDims


@dataclass(frozen=True)
class SequenceMesh:
    """One rank's view of its sequence group; groups connect when they are first used.

    ``weights`` has one number per rank of the sequence group: how much of the tokens and heads it
    computes. Ulysses groups are consecutive ranks (arXiv:2405.07719, USP).
    """

    world: World
    dims: ParallelDims
    weights: tuple[float, ...]

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """World ranks of the sequence group, in order of their shards."""
        return self.dims.peers(self.world.place.rank, ("ulysses", "ring"))

    @cached_property
    def index(self) -> int:
        """This rank's shard."""
        return self.ranks.index(self.world.place.rank)

    @property
    def sequence(self) -> Group:
        """All ranks that share the sequence."""
        return self.world.group(self.ranks)

    @property
    def ulysses(self) -> Group:
        """The ranks with which this one exchanges heads for tokens."""
        return self.world.group(self.dims.peers(self.world.place.rank, ("ulysses",)))

    @property
    def ring(self) -> Group:
        """The ranks with the same heads and other tokens."""
        return self.world.group(self.dims.peers(self.world.place.rank, ("ring",)))

    @cached_property
    def block(self) -> int:
        """This rank's index in the ring."""
        return self.index // self.dims.ulysses

    def shards_of_block(self, block: int) -> range:
        """Shards that the Ulysses group of one block of the ring holds together."""
        return range(block * self.dims.ulysses, (block + 1) * self.dims.ulysses)

    @cached_property
    def head_weights(self) -> Sequence[float]:
        """Weight per rank of a Ulysses group. All blocks of a ring must split heads alike."""
        degree = self.dims.ulysses
        return [sum(self.weights[u::degree]) for u in range(degree)]
