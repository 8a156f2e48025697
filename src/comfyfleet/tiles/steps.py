"""The steps by which a picture is redrawn: tiles in order, then what mends their seams.

The algorithm is that of Ultimate SD Upscale by Coyote-A
(github.com/Coyote-A/ultimate-upscale-for-automatic1111) with the sizes of its ComfyUI node
(github.com/ssitu/ComfyUI_UltimateSDUpscale): its orders, its ways to fix seams. Unlike there,
numbers are never rounded to 8 bits, and a tile that is larger than the picture is cut to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from comfyfleet.errors import InputError
from comfyfleet.tiles.geometry import Rect, grid, multiple, shaped_like

#: The order of tiles, as Ultimate SD Upscale names it. None: no tiles, seams only.
MODES = ("Linear", "Chess", "None")
SEAM_FIXES = ("None", "Band Pass", "Half Tile", "Half Tile + Intersections")
#: How strongly a step is drawn over its area: everywhere alike, more towards the middle row or
#: column, or towards the middle point.
Shape = Literal["flat", "rows", "columns", "radial"]
Pass = Literal["redraw", "seams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One tile: ``crop`` is computed at ``size`` (width, height) and drawn onto ``area``."""

    index: int
    kind: Pass
    #: Steps of the same number can be drawn from one picture.
    level: int
    area: Rect
    shape: Shape
    #: Standard deviation, in pixels, of the Gaussian that softens the edges of the area.
    blur: int
    crop: Rect
    size: tuple[int, int]

    @property
    def reach(self) -> Rect:
        """The pixels that the step may change."""
        return self.area.grown(reach_of(self.blur)).within(self.crop)


def reach_of(blur: int) -> int:
    """How far a softened edge goes: 3 standard deviations hold 99.7 %."""
    return 3 * blur


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a picture is cut; the defaults are those of Ultimate SD Upscale.

    Raises InputError for sizes with which nothing can be computed.
    """

    mode: str = "Linear"
    tile_width: int = 512
    tile_height: int = 512
    padding: int = 32
    mask_blur: int = 8
    uniform: bool = True
    seam_fix: str = "None"
    seam_width: int = 64
    seam_blur: int = 8
    seam_padding: int = 16
    #: Sides at which a model computes are multiples of this: the VAE's compression.
    unit: int = 8

    def __post_init__(self) -> None:
        _require("mode_type", self.mode, MODES)
        _require("seam_fix_mode", self.seam_fix, SEAM_FIXES)
        for name in ("tile_width", "tile_height"):
            if getattr(self, name) < self.unit:
                raise InputError(f"{name} is {getattr(self, name)}; give {self.unit} or more.")
        for name in ("padding", "mask_blur", "seam_width", "seam_blur", "seam_padding"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if self.seam_fix == "Band Pass" and self.seam_width < 2:
            raise InputError(
                f"seam_fix_width is {self.seam_width}; a Band Pass needs bands of 2 pixels or more."
            )

    def steps(self, width: int, height: int) -> list[Step]:
        """All steps for a picture of this size, in their order."""
        whole = Rect(0, 0, width, height)
        fitted = (
            min(self.tile_width, multiple(width, self.unit)),
            min(self.tile_height, multiple(height, self.unit)),
        )
        drafts = [*self._redraw(whole, *fitted), *self._seams(whole, *fitted)]
        return [_step(index, draft, self, whole) for index, draft in enumerate(drafts)]

    def _redraw(self, whole: Rect, width: int, height: int) -> Iterator[_Draft]:
        rows = grid(whole, width, height)
        size = (width + self.padding, height + self.padding)
        for column, row in _ordered(rows, self.mode):
            area = rows[row][column]
            yield _Draft("redraw", 0, area, "flat", self.mask_blur, self.padding, size)

    def _seams(self, whole: Rect, width: int, height: int) -> Iterator[_Draft]:
        if self.seam_fix == "Band Pass":
            yield from self._bands(whole, width, height)
        elif self.seam_fix != "None":
            yield from self._halves(whole, width, height)
            if self.seam_fix == "Half Tile + Intersections":
                yield from self._crossings(whole, width, height)

    def _bands(self, whole: Rect, width: int, height: int) -> Iterator[_Draft]:
        """Bands along the seams, as long as the picture; their edges are soft by themselves."""
        across, half = self.seam_width + 2 * self.seam_padding, self.seam_width // 2
        for x in range(width, whole.right, width):
            area = Rect(x - half, 0, x - half + self.seam_width, whole.bottom)
            yield self._seam(1, area, "columns", (across, whole.height), blur=0)
        for y in range(height, whole.bottom, height):
            area = Rect(0, y - half, whole.right, y - half + self.seam_width)
            yield self._seam(2, area, "rows", (whole.width, across), blur=0)

    def _halves(self, whole: Rect, width: int, height: int) -> Iterator[_Draft]:
        """Tiles whose middle is a seam."""
        for y in range(height // 2, whole.bottom - height + height // 2, height):
            for x in range(0, whole.right, width):
                yield self._seam(1, Rect(x, y, x + width, y + height), "rows", (width, height))
        for y in range(0, whole.bottom, height):
            for x in range(width // 2, whole.right - width + width // 2, width):
                yield self._seam(2, Rect(x, y, x + width, y + height), "columns", (width, height))

    def _crossings(self, whole: Rect, width: int, height: int) -> Iterator[_Draft]:
        """Tiles whose middle is where four tiles meet."""
        for y in range(height // 2, whole.bottom - height + height // 2, height):
            for x in range(width // 2, whole.right - width + width // 2, width):
                area = Rect(x, y, x + width, y + height)
                yield _Draft("seams", 3, area, "radial", self.seam_blur, 0, (width, height))

    def _seam(
        self, level: int, area: Rect, shape: Shape, size: tuple[int, int], blur: int | None = None
    ) -> _Draft:
        softness = self.seam_blur if blur is None else blur
        return _Draft("seams", level, area, shape, softness, self.seam_padding, size)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A step before its context is known."""

    kind: Pass
    level: int
    area: Rect
    shape: Shape
    blur: int
    padding: int
    size: tuple[int, int]


def _step(index: int, draft: _Draft, layout: Layout, whole: Rect) -> Step:
    crop, size = draft.area.within(whole).grown(draft.padding).within(whole), draft.size
    if layout.uniform:
        size = (multiple(size[0], layout.unit), multiple(size[1], layout.unit))
        crop = shaped_like(crop, *size, whole)
    else:
        size = (multiple(crop.width, layout.unit), multiple(crop.height, layout.unit))
        crop = crop.stretched(*size, whole)
    return Step(
        index=index,
        kind=draft.kind,
        level=draft.level,
        area=draft.area,
        shape=draft.shape,
        blur=draft.blur,
        crop=crop,
        size=size,
    )


def _ordered(rows: Sequence[Sequence[Rect]], mode: str) -> Iterator[tuple[int, int]]:
    """Column and row of each tile: line by line, or the white fields of a chess board first."""
    places = [(column, row) for row in range(len(rows)) for column in range(len(rows[row]))]
    if mode == "Linear":
        yield from places
    elif mode == "Chess":
        for color in (0, 1):
            yield from ((column, row) for column, row in places if (column + row) % 2 == color)


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; give one of {', '.join(allowed)}.")
