"""Jobs made of sheets: one sheet is one picture, or one video of a model that sees time.

A *stream* opens sheets as its tasks go out and finishes them in order, so a video of any length
needs the memory of the few frames that are in flight.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from comfyfleet.comfy.conditioning import Views
from comfyfleet.comfy.tiled import Driver, glimpse, joined, tiles_of
from comfyfleet.comfy.tiles import group_parcel
from comfyfleet.errors import ComfyFleetError
from comfyfleet.extension.spread.job import Task
from comfyfleet.tiles.canvas import Canvas

#: What open sheets may hold together. The first one is opened however large it is.
_OPEN_BYTES = 2 << 30

#: Plain data and tensors that one tile, or one group of tiles, is computed from.
Parcel: TypeAlias = Any


class Sheet(Protocol):
    """Parcels of one picture."""

    @property
    def done(self) -> bool: ...

    @property
    def num_ready(self) -> int:
        """How many parcels may begin now."""

    @property
    def num_bytes(self) -> int:
        """What it holds until it is done, as far as that is known."""

    def next(self) -> tuple[int, Parcel]:
        """A number and the parcel; only if one is ready."""

    def take(self, number: int, result: Any) -> None: ...

    def seen(self, side: int) -> torch.Tensor | None:
        """The first picture as it is now, [h, w, C], about as large as ``side`` at most; None if
        nothing has come of it yet."""


class Stream:
    """Sheets one after the other. Implements ``spread.Job``; results of a task are a list."""

    def __init__(
        self,
        sheets: Iterator[Sheet],
        finish: Callable[[Sheet], None],
        *,
        static_devices: int = 0,
        max_open: int = 1 << 20,
    ) -> None:
        """``finish`` gets each sheet that is done, in order. At most ``max_open`` are on their way,
        and no more than fit in memory.

        With ``static_devices`` what may begin at one time is dealt out to so many devices in equal
        parts, each of them one task; else each parcel is a task, taken by whoever is free.
        """
        self._sheets = sheets
        self._finish = finish
        self._static_devices = static_devices
        self._max_open = max_open
        self._open: deque[Sheet] = deque()
        self._exhausted = False
        #: Task -> its sheet, and the numbers of its parcels.
        self._given: dict[int, tuple[Sheet, list[int]]] = {}
        self._num_given = 0
        #: With static devices: parcels that are still to be dealt out, and how many in each task.
        self._left, self._portion = 0, 1
        self.num_taken = 0

    @property
    def done(self) -> bool:
        return self._exhausted and not self._open

    @property
    def current(self) -> Sheet | None:
        """The first one that is not done."""
        return self._open[0] if self._open else None

    def next(self) -> Task | None:
        sheet = self._ready_sheet()
        if sheet is None:
            return None
        count = self._share_of(sheet)
        numbers, parcels = zip(*(sheet.next() for _ in range(count)), strict=True)
        index, self._num_given = self._num_given, self._num_given + 1
        self._given[index] = (sheet, list(numbers))
        size = sum(map(bytes_of, parcels))
        return Task(index=index, value=list(parcels), num_bytes=size, cost=float(count))

    def take(self, index: int, value: Any) -> None:
        sheet, numbers = self._given[index]
        if not isinstance(value, list) or len(value) != len(numbers):
            raise ComfyFleetError(f"task {index} has {len(numbers)} parts; that is not what came.")
        for number, result in zip(numbers, value, strict=True):
            sheet.take(number, result)
            self.num_taken += 1
        del self._given[index]
        self._close()

    def _ready_sheet(self) -> Sheet | None:
        ready = next((sheet for sheet in self._open if sheet.num_ready), None)
        while ready is None and not self._exhausted and self._may_open():
            sheet = next(self._sheets, None)
            if sheet is None:
                self._exhausted = True
            else:
                self._open.append(sheet)
                ready = sheet if sheet.num_ready else None
            self._close()  # a sheet with nothing to do
        return ready

    def _may_open(self) -> bool:
        if not self._open:
            return True
        # The next one is taken to be as large as the last.
        held = sum(sheet.num_bytes for sheet in self._open) + self._open[-1].num_bytes
        return len(self._open) < self._max_open and held <= _OPEN_BYTES

    def _share_of(self, sheet: Sheet) -> int:
        """How many parcels the next task has."""
        if not self._static_devices:
            return 1
        if not self._left:
            self._left = sheet.num_ready
            self._portion = -(-self._left // self._static_devices)
        count = min(self._portion, self._left, sheet.num_ready)
        self._left = self._left - count if sheet.num_ready > count else 0
        return count

    def _close(self) -> None:
        while self._open and self._open[0].done:
            self._finish(self._open.popleft())


@dataclass(slots=True, kw_only=True)
class RedrawSheet:
    """A picture whose tiles are sampled; frames of a video, if the model sees time."""

    canvas: Canvas
    #: Width and height of the picture that the conditioning was made for.
    original: tuple[int, int]
    #: Which pictures of the batch these are, and how many that has.
    first: int
    count: int
    total: int
    denoise: float
    seam_denoise: float
    #: The first picture's place in the batch whose noise is drawn; None: all are one latent.
    noise_from: int | None

    @property
    def done(self) -> bool:
        return self.canvas.done

    @property
    def num_ready(self) -> int:
        return self.canvas.num_ready

    @property
    def num_bytes(self) -> int:
        return self.canvas.num_bytes

    def next(self) -> tuple[int, Parcel]:
        number = self.canvas.begin()
        group = self.canvas.groups[number]
        views = Views(
            crops=tuple(step.crop for step in group),
            picture=(self.canvas.whole.right, self.canvas.whole.bottom),
            original=self.original,
            size=group[0].size,
            unit=self.canvas.unit,
            first=self.first,
            count=self.count,
            total=self.total,
        )
        noise = None
        if self.noise_from is not None:
            # What it would be in a batch of all pictures, each with all tiles of the group.
            noise = [self.noise_from * len(group) + i for i in range(len(group))]
        denoise = self.denoise if group[0].kind == "redraw" else self.seam_denoise
        return number, group_parcel(self.canvas.crops(number), views, noise, denoise)

    def take(self, number: int, result: Any) -> None:
        if not isinstance(result, list) or len(result) != len(self.canvas.groups[number]):
            raise ComfyFleetError(f"tiles of group {number} are missing.")
        self.canvas.put(number, result)

    def seen(self, side: int) -> torch.Tensor | None:
        return self.canvas.seen(side)


class DriverSheet:
    """Something that an algorithm of ComfyUI's computes by tiles; see ``comfy.tiled``."""

    def __init__(
        self,
        driver: Driver,
        shape_of: Callable[[torch.Tensor], Sequence[int]],
        source: torch.Tensor,
        look: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """``source``: what the driver cuts into tiles. ``look``: their results to colours of 0 to
        1; None if they have no colours."""
        self._driver = driver
        self._source = source
        self._look = look
        self._tiles = tiles_of(driver, shape_of)
        self._shapes = [tuple(shape_of(tile)) for tile in self._tiles]
        self._results: dict[int, torch.Tensor] = {}
        self._next = 0

    @property
    def num_tiles(self) -> int:
        return len(self._tiles)

    @property
    def done(self) -> bool:
        return len(self._results) == len(self._tiles)

    @property
    def num_ready(self) -> int:
        return len(self._tiles) - self._next

    @property
    def num_bytes(self) -> int:
        return 4 * sum(math.prod(shape) for shape in self._shapes)

    def next(self) -> tuple[int, Parcel]:
        number, self._next = self._next, self._next + 1
        return number, self._tiles[number]

    def take(self, number: int, result: Any) -> None:
        if not isinstance(result, torch.Tensor) or tuple(result.shape) != self._shapes[number]:
            shape = getattr(result, "shape", None)
            raise ComfyFleetError(
                f"tile {number} came as {None if shape is None else tuple(shape)}; it must be "
                f"{self._shapes[number]}."
            )
        self._results[number] = result

    def seen(self, side: int) -> torch.Tensor | None:
        if self._look is None or not self._results:
            return None
        pixels = self._look(glimpse(self._source, self._tiles, self._results, side))
        return pixels.reshape(pixels.shape[1], *pixels.shape[-2:])[:3].movedim(0, -1)

    def joined(self) -> torch.Tensor:
        """The whole, when done."""
        return joined(self._driver, [self._results[i] for i in range(len(self._tiles))])


def bytes_of(parcel: Parcel) -> int:
    """What a parcel's tensors hold."""
    if isinstance(parcel, torch.Tensor):
        return int(parcel.numel() * parcel.element_size())
    if isinstance(parcel, dict):
        return sum(map(bytes_of, parcel.values()))
    return sum(map(bytes_of, parcel)) if isinstance(parcel, list | tuple) else 0
