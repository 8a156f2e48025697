"""Rectangles of pixels: the grid of tiles, and the context that each tile is computed with."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rect:
    """Pixels from ``left`` and ``top`` up to, and without, ``right`` and ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def is_empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def meets(self, other: Rect) -> bool:
        """Have they a pixel in common?"""
        return not self.within(other).is_empty

    def within(self, other: Rect) -> Rect:
        """What they have in common; perhaps empty."""
        return Rect(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    def grown(self, by: int) -> Rect:
        """So many pixels larger on each side."""
        return Rect(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def moved(self, left: int, top: int) -> Rect:
        """As seen from a rectangle that begins there."""
        return Rect(self.left - left, self.top - top, self.right - left, self.bottom - top)

    def stretched(self, width: int, height: int, whole: Rect) -> Rect:
        """Stretched to a size about its middle, within ``whole``; smaller where that is."""
        left, right = _stretch(self.left, self.right, width, whole.left, whole.right)
        top, bottom = _stretch(self.top, self.bottom, height, whole.top, whole.bottom)
        return Rect(left, top, right, bottom)


def _stretch(begin: int, end: int, length: int, low: int, high: int) -> tuple[int, int]:
    """Half of what is missing after the end, the rest before the beginning, what is left after."""
    end = min(end + (length - (end - begin)) // 2, high)
    begin = max(begin - (length - (end - begin)), low)
    return begin, min(begin + max(length, end - begin), high)


def multiple(length: float, of: int) -> int:
    """The next multiple of ``of`` that is not below."""
    return math.ceil(length / of) * of


def grid(whole: Rect, width: int, height: int) -> list[list[Rect]]:
    """Rows of tiles of this size from the upper left corner on; the last ones may be smaller."""
    columns = range(whole.left, whole.right, width)
    return [
        [Rect(x, y, x + width, y + height).within(whole) for x in columns]
        for y in range(whole.top, whole.bottom, height)
    ]


def shaped_like(crop: Rect, width: int, height: int, whole: Rect) -> Rect:
    """The crop with more context, so that its sides are as ``width`` to ``height``."""
    if crop.width * height > crop.height * width:
        return crop.stretched(crop.width, round(crop.width * height / width), whole)
    return crop.stretched(round(crop.height * width / height), crop.height, whole)
