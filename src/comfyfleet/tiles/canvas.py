"""The picture that steps are drawn onto. B: pictures or frames, H, W: its size, C: colours."""

from __future__ import annotations

import torch

from comfyfleet.errors import ComfyFleetError
from comfyfleet.tiles.geometry import Rect
from comfyfleet.tiles.masks import mask_of
from comfyfleet.tiles.order import Group, Order, groups_of
from comfyfleet.tiles.steps import Layout, Step


class Canvas:
    """A picture on its way: gives what its tiles are computed from, takes what came of them.

    The result is the same bits in whatever order tiles arrive. Time and memory of a tile do not
    grow with the picture.
    """

    def __init__(
        self, pixels_BHWC: torch.Tensor, layout: Layout, *, progressive: bool, batch: int = 1
    ) -> None:
        """``pixels_BHWC`` is drawn onto. ``batch``: tiles that are computed in one go."""
        self.pixels = pixels_BHWC
        #: Tiles are computed at multiples of it: the VAE's compression.
        self.unit = layout.unit
        self.whole = Rect(0, 0, pixels_BHWC.shape[2], pixels_BHWC.shape[1])
        steps = layout.steps(self.whole.width, self.whole.height)
        self._order = Order(groups_of(steps, batch), progressive=progressive)
        self._sheet = None if progressive else _Sheet(pixels_BHWC)
        #: Computed, and not drawn yet.
        self._arrived: dict[int, list[torch.Tensor]] = {}

    @property
    def groups(self) -> tuple[Group, ...]:
        return self._order.groups

    @property
    def num_bytes(self) -> int:
        """What the picture holds, and what is drawn beside it until it is done."""
        size = int(self.pixels.numel() * self.pixels.element_size())
        return size if self._sheet is None else size + self._sheet.num_bytes

    @property
    def num_drawn(self) -> int:
        """How many groups are drawn."""
        return self._order.num_drawn

    @property
    def done(self) -> bool:
        return self._order.done

    @property
    def num_ready(self) -> int:
        """How many groups may be computed now."""
        return self._order.num_ready

    def begin(self) -> int:
        """The number of a group that may be computed now, each once."""
        return self._order.begin()

    def crops(self, number: int) -> list[torch.Tensor]:
        """What each tile of the group is computed from, [B, height, width, C]."""
        return [_part(self.pixels, step.crop).clone() for step in self.groups[number]]

    def seen(self, side: int) -> torch.Tensor:
        """The first picture as it is now, [h, w, C], about as large as ``side`` at most."""
        step = max(1, max(self.whole.right, self.whole.bottom) // side)
        pixels = self.pixels[0, ::step, ::step]
        return pixels if self._sheet is None else pixels + self._sheet.seen(step)

    def put(self, number: int, tiles: list[torch.Tensor]) -> None:
        """What came of a group that ``begin`` gave, each tile as large as its crop."""
        for step, tile_BHWC in zip(self.groups[number], tiles, strict=True):
            count, colors = self.pixels.shape[0], self.pixels.shape[3]
            expected = (count, step.crop.height, step.crop.width, colors)
            if tuple(tile_BHWC.shape) != expected or not tile_BHWC.is_floating_point():
                raise ComfyFleetError(
                    f"tile {step.index} came as {tuple(tile_BHWC.shape)} {tile_BHWC.dtype}; it "
                    f"must be floats of {expected}: pictures, height, width, colours."
                )
        self._arrived[number] = tiles
        for due in self._order.arrive(number):
            for step, tile_BHWC in zip(self.groups[due], self._arrived.pop(due), strict=True):
                self._draw(step, tile_BHWC)
            if self._sheet is not None and self._order.is_last_of_level(due):
                self._sheet.apply()

    def _draw(self, step: Step, tile_BHWC: torch.Tensor) -> None:
        mask_HW1 = mask_of(step, self.whole)[:, :, None]
        new = _part(tile_BHWC, step.reach.moved(step.crop.left, step.crop.top))
        old = _part(self.pixels, step.reach)
        # In this form a tile that is as before changes nothing, not even a last bit.
        change = mask_HW1 * (new - old)
        if self._sheet is None:
            old += change
        else:
            self._sheet.add(step, mask_HW1, change)


class _Sheet:
    """Steps of one level, blended by their weights before they change the picture."""

    def __init__(self, pixels_BHWC: torch.Tensor) -> None:
        self._pixels = pixels_BHWC
        self._changes = torch.zeros_like(pixels_BHWC)
        self._weights_HW1 = torch.zeros((*pixels_BHWC.shape[1:3], 1))
        #: Tiles cover the picture: their weights are made to sum to one. What mends seams leaves
        #: the rest as it is.
        self._least = 1.0

    @property
    def num_bytes(self) -> int:
        return int(self._changes.numel() * self._changes.element_size())

    def add(self, step: Step, mask_HW1: torch.Tensor, change_BHWC: torch.Tensor) -> None:
        area = step.reach
        self._changes[:, area.top : area.bottom, area.left : area.right] += change_BHWC
        self._weights_HW1[area.top : area.bottom, area.left : area.right] += mask_HW1
        self._least = 1e-6 if step.shape == "flat" else 1.0

    def seen(self, step: int) -> torch.Tensor:
        """What the steps so far change in the first picture, at every so many pixels."""
        weights_HW1 = self._weights_HW1[::step, ::step].clamp(min=self._least)
        return self._changes[0, ::step, ::step] / weights_HW1

    def apply(self) -> None:
        """All steps of the level are here."""
        self._pixels += self._changes.div_(self._weights_HW1.clamp_(min=self._least))
        self._changes.zero_()
        self._weights_HW1.zero_()


def _part(picture_BHWC: torch.Tensor, area: Rect) -> torch.Tensor:
    return picture_BHWC[:, area.top : area.bottom, area.left : area.right]
