"""The degrees of parallelism, and where each rank stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from comfyfleet.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelDims:
    """How many ranks each axis has. The fields are in rank order, innermost first.

    ``ulysses`` and ``ring`` together split the tokens of one forward, ``cfg`` the conditionings
    of one step, ``batch`` the samples of one forward. Ulysses is innermost because it sends the
    most: its ranks are neighbours. A new axis is a new field in its place.
    """

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        for name, degree in self.degrees.items():
            if degree < 1:
                raise InputError(f"{name} is {degree}; a degree is a whole number from 1.")

    @property
    def degrees(self) -> Mapping[str, int]:
        """Axis -> degree, innermost first."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def sequence(self) -> int:
        """Ranks that share the tokens of one forward."""
        return self.ulysses * self.ring

    @property
    def size(self) -> int:
        """Ranks in all."""
        size = 1
        for degree in self.degrees.values():
            size *= degree
        return size

    def check(self, num_ranks: int) -> None:
        """Raise InputError unless the degrees use ``num_ranks`` ranks at the most."""
        if self.size > num_ranks:
            product = " x ".join(f"{name} {degree}" for name, degree in self.degrees.items())
            raise InputError(
                f"{product} needs {self.size} devices; there are {num_ranks}. Make the product "
                f"of the degrees {num_ranks} or less."
            )

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Axis -> this rank's index on it."""
        found = {}
        for name, degree in self.degrees.items():
            rank, found[name] = divmod(rank, degree)
        return found

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank at these coordinates; an axis that is not named counts as 0."""
        rank, stride = 0, 1
        for name, degree in self.degrees.items():
            rank += stride * coordinates.get(name, 0)
            stride *= degree
        return rank

    def peers(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """Ranks that differ from ``rank`` on these axes only, itself among them, in rank order."""
        mine = self.coordinates(rank)
        fixed = [name for name in self.degrees if name not in axes]
        return tuple(
            other
            for other in range(self.size)
            if all(self.coordinates(other)[name] == mine[name] for name in fixed)
        )

    def __str__(self) -> str:
        used = [f"{name} {degree}" for name, degree in self.degrees.items() if degree > 1]
        return " x ".join(used) or "one device"
