"""Which steps may begin, so that the picture is the same whoever computes what, and when.

*Progressive*: a step sees what the steps before it have drawn, as on one device. It waits for
those before it whose pixels it reads, or that read pixels which it changes; the others may be
computed at the same time. *Independent*: all steps of a level see the picture as it was before
the level, and are drawn in their order.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from comfyfleet.tiles.geometry import Rect
from comfyfleet.tiles.steps import Step

#: Steps that are computed in one go, all of them from the picture before the first is drawn.
Group = tuple[Step, ...]


class Order:
    """Which groups may begin, and which may be drawn, when others have been drawn.

    ``begin`` gives a group once; it is drawn when its turn has come, see ``arrive``.
    """

    def __init__(self, groups: Sequence[Group], *, progressive: bool) -> None:
        self.groups = tuple(groups)
        self._progressive = progressive
        #: Of each group, those before it that must be drawn first: before it begins if it is
        #: progressive, else before it is drawn.
        before = _conflicts(self.groups)
        self._waits = [len(found) for found in before]
        self._after: list[list[int]] = [[] for _ in self.groups]
        for number, found in enumerate(before):
            for other in found:
                self._after[other].append(number)
        self._levels = _count_levels(self.groups)
        self._arrived: set[int] = set()
        #: A heap: the first ones first.
        self._ready = [n for n in range(len(self.groups)) if self._may_begin(n)]
        self._offered = set(self._ready)
        self.num_drawn = 0

    @property
    def done(self) -> bool:
        return self.num_drawn == len(self.groups)

    @property
    def num_ready(self) -> int:
        """How many groups may begin now."""
        return len(self._ready)

    def begin(self) -> int:
        """The first group that may begin; only if there is one."""
        return heapq.heappop(self._ready)

    def arrive(self, number: int) -> Iterator[int]:
        """A group has been computed: the groups that are to be drawn now, one after the other.

        Each is taken for drawn when the next one is asked for.
        """
        self._arrived.add(number)
        waiting = [number]
        while waiting:
            number = waiting.pop()
            if number in self._arrived and self._may_be_drawn(number):
                self._arrived.remove(number)
                yield number
                waiting += reversed(self._note_drawn(number))

    def is_last_of_level(self, number: int) -> bool:
        """Has everything else of this group's level been drawn?"""
        return self._levels[self.groups[number][0].level] == 1

    def _may_be_drawn(self, number: int) -> bool:
        return self._progressive or not self._waits[number]

    def _may_begin(self, number: int) -> bool:
        if self._progressive:
            return not self._waits[number]
        level = self.groups[number][0].level
        return all(left == 0 for other, left in self._levels.items() if other < level)

    def _note_drawn(self, number: int) -> list[int]:
        """Groups that this may have let on."""
        self.num_drawn += 1
        level = self.groups[number][0].level
        self._levels[level] -= 1
        freed = []
        for other in self._after[number]:
            self._waits[other] -= 1
            if not self._waits[other]:
                freed.append(other)
        opened = freed if self._progressive else self._opened_by(level)
        for each in opened:
            if each not in self._offered and self._may_begin(each):
                self._offered.add(each)
                heapq.heappush(self._ready, each)
        return freed

    def _opened_by(self, level: int) -> list[int]:
        if self._levels[level]:
            return []
        return [n for n in range(len(self.groups)) if n not in self._offered]


def groups_of(steps: Sequence[Step], size: int) -> list[Group]:
    """Tiles in groups of up to ``size``; what mends seams is alone."""
    redraw = [step for step in steps if step.kind == "redraw"]
    tiles = [tuple(redraw[at : at + size]) for at in range(0, len(redraw), size)]
    return [*tiles, *((step,) for step in steps if step.kind != "redraw")]


def _conflicts(groups: Sequence[Group]) -> list[list[int]]:
    """Of each group, those before it with which it cannot change places.

    Each step is compared with all before it at once: an 8K picture in tiles of 128 pixels takes a
    quarter of a second, 16,000 tiles take seven.
    """
    steps = [step for group in groups for step in group]
    owner = torch.tensor([n for n, group in enumerate(groups) for _ in group])
    reach, crop = (_corners([getattr(s, name) for s in steps]) for name in ("reach", "crop"))
    found, first = [], 0
    for group in groups:
        last = first + len(group)
        hit = torch.zeros(first, dtype=torch.bool)
        for at in range(first, last):
            hit |= _meet(reach[:, :first], crop[:, at]) | _meet(crop[:, :first], reach[:, at])
        found.append(owner[:first][hit].unique().tolist())
        first = last
    return found


def _corners(rects: Sequence[Rect]) -> torch.Tensor:
    """Left, top, right and bottom of each: (4, rects)."""
    found = [(rect.left, rect.top, rect.right, rect.bottom) for rect in rects]
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 4).T.contiguous()


def _meet(many: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """Which of many rectangles have a pixel in common with one? As ``Rect.meets``."""
    low = torch.maximum(many[:2], one[:2, None])
    high = torch.minimum(many[2:], one[2:, None])
    return (low < high).all(0)


def _count_levels(groups: Sequence[Group]) -> dict[int, int]:
    levels: dict[int, int] = defaultdict(int)
    for group in groups:
        levels[group[0].level] += 1
    return levels
