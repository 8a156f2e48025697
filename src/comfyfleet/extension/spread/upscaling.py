"""Pictures made larger and redrawn by tiles: what the upscaling nodes have in common."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.utils
import server
import torch
from PIL import Image

from comfyfleet.comfy.tiled import Driver, silent, upscale_tile
from comfyfleet.comfy.tiles import Sampling, is_video, resized, sample_parcel
from comfyfleet.errors import InputError
from comfyfleet.extension.spread.elsewhere import Elsewhere, Part
from comfyfleet.extension.spread.sheets import DriverSheet, RedrawSheet, Sheet, Stream
from comfyfleet.tiles.canvas import Canvas
from comfyfleet.tiles.order import groups_of
from comfyfleet.tiles.steps import Layout

#: How tiles see each other: as on one device, or not at all.
BLENDS = ("progressive", "independent")
#: Tasks to whoever is free, or in equal parts.
DISTRIBUTIONS = ("dynamic", "static")

SAMPLE_NODE = "FleetSampleTiles"
MODEL_NODE = "FleetUpscaleTiles"

#: How often the growing picture is shown, and how large.
_PREVIEW_S = 1.0
_PREVIEW_SIDE = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class Redraw:
    """How a picture is redrawn by tiles, but for the model."""

    layout: Layout
    denoise: float
    seam_denoise: float
    progressive: bool = True
    static: bool = False
    #: Tiles that are sampled in one go.
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in (("denoise", self.denoise), ("seam_fix_denoise", self.seam_denoise)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} is {value}; give 0 to 1.")
        if self.batch < 1:
            raise InputError(f"batch_size is {self.batch}; give 1 or more.")
        if self.batch > 1 and not self.layout.uniform:
            raise InputError(
                f"batch_size is {self.batch}, but force_uniform_tiles is off: tiles of several "
                "sizes are no batch. Set batch_size to 1, or turn force_uniform_tiles on."
            )

    def num_groups(self, width: int, height: int) -> int:
        """How many groups of tiles a picture of this size has."""
        return len(groups_of(self.layout.steps(width, height), self.batch))

    def canvas(self, pixels_BHWC: torch.Tensor) -> Canvas:
        """Pictures that are sampled together, to be drawn onto."""
        return Canvas(pixels_BHWC, self.layout, progressive=self.progressive, batch=self.batch)


def sample_part(sampling: Sampling) -> Part:
    """What workers need to sample tiles."""
    names = ("model", "positive", "negative", "vae", "custom_sampler", "custom_sigmas")
    return Part(
        class_type=SAMPLE_NODE,
        numbers={
            "seed": sampling.seed,
            "steps": sampling.steps,
            "cfg": sampling.cfg,
            "sampler_name": sampling.sampler_name,
            "scheduler": sampling.scheduler,
            "tiled_decode": sampling.tiled_decode,
        },
        links=names,
        given={name: getattr(sampling, name) for name in names},
    )


def require_pictures(pixels_BHWC: Any, name: str) -> torch.Tensor:
    """A batch of one picture or more. Raises InputError naming the input."""
    if not isinstance(pixels_BHWC, torch.Tensor) or pixels_BHWC.ndim != 4:
        raise InputError(f"{name} is no IMAGE: a batch of pictures is [number, height, width, 3].")
    count, height, width, channels = pixels_BHWC.shape
    if count == 0:
        raise InputError(f"{name} is an empty batch; connect one picture or more.")
    if height == 0 or width == 0:
        raise InputError(f"{name} is {width} x {height} pixels; there is nothing to upscale.")
    if channels not in (1, 3, 4):
        raise InputError(f"{name} has {channels} channels; give 1 (grey), 3 (RGB) or 4 (RGBA).")
    return pixels_BHWC


def kind_of(dimensions: int) -> str:
    """What latents of so many dimensions are of, besides batch and channels."""
    return {1: "sound", 2: "pictures", 3: "videos"}[dimensions]


def with_colors(pixels_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Three colours, and the alpha channel if there is one."""
    if pixels_BHWC.shape[3] == 1:
        return pixels_BHWC.expand(-1, -1, -1, 3), None
    alpha = pixels_BHWC[..., 3:] if pixels_BHWC.shape[3] == 4 else None
    return pixels_BHWC[..., :3], alpha


def enlarged_size(width: int, height: int, factor: float, unit: int) -> tuple[int, int]:
    """Width and height ``factor`` times as large, as near as multiples of ``unit`` allow.

    A picture that is not enlarged keeps its size: its last pixels are computed all the same.
    """
    if factor == 1.0:
        return width, height
    sides = (max(unit, round(side * factor / unit) * unit) for side in (width, height))
    return next(sides), next(sides)


class Progress:
    """What the user sees of a node whose work is spread."""

    def __init__(self, node_id: str, total: int, what: str) -> None:
        self._node_id, self._total, self._what = node_id, total, what
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)
        self._shown = 0.0

    def tell(
        self, done: int, counts: Mapping[str, int], picture: Callable[[], torch.Tensor | None]
    ) -> None:
        """``picture``: [height, width, 3] as it is now; asked for when it is time to show it."""
        preview, now = None, time.monotonic()
        if now - self._shown > _PREVIEW_S and (found := picture()) is not None:
            self._shown = now
            preview = ("JPEG", _small(found), _PREVIEW_SIDE)
        self._bar.update_absolute(min(done, self._total), self._total, preview)
        by_worker = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        text = f"{done} of {self._total} {self._what}: {by_worker}"
        server.PromptServer.instance.send_progress_text(text, self._node_id)


def _small(picture_HWC: torch.Tensor) -> Image.Image:
    step = max(1, max(picture_HWC.shape[:2]) // _PREVIEW_SIDE)
    pixels = picture_HWC[::step, ::step].clamp(0, 1).mul(255).byte().cpu().numpy()
    return Image.fromarray(pixels)


def redraw(
    elsewhere: Elsewhere,
    node_id: str,
    pixels_BHWC: torch.Tensor,
    original: tuple[int, int],
    how: Redraw,
    sampling: Sampling,
) -> torch.Tensor:
    """The pictures, [B, H, W, 3], redrawn by tiles; ``pixels_BHWC`` is drawn onto.

    ``original``: width and height of the picture that the conditioning was made for.
    """
    total, one_latent = pixels_BHWC.shape[0], is_video(sampling.vae)
    parts = portions(total, sampling.vae)
    num_groups = how.num_groups(pixels_BHWC.shape[2], pixels_BHWC.shape[1])
    if not num_groups:
        return pixels_BHWC
    # One by one: what a canvas needs besides its picture is there for those on their way.
    sheets = (
        RedrawSheet(
            canvas=how.canvas(pixels_BHWC[first : first + count]),
            original=original,
            first=first,
            count=count,
            total=total,
            denoise=how.denoise,
            seam_denoise=how.seam_denoise,
            noise_from=None if one_latent else first,
        )
        for first, count in parts
    )
    progress = Progress(node_id, len(parts) * num_groups, "tiles")
    tiles = stream(sheets, lambda sheet: None, how.static, elsewhere)
    run_redraw(
        elsewhere,
        tiles,
        sampling,
        lambda counts: progress.tell(tiles.num_taken, counts, lambda: _seen(tiles.current)),
    )
    return pixels_BHWC


def _seen(sheet: Sheet | None) -> torch.Tensor | None:
    return None if sheet is None else sheet.seen(_PREVIEW_SIDE)


def portions(total: int, vae: Any) -> list[tuple[int, int]]:
    """First picture and number of pictures of each sheet: who is sampled together.

    This must not depend on who computes: so pictures are alone, and frames are together.
    """
    return [(0, total)] if is_video(vae) else [(i, 1) for i in range(total)]


def run_redraw(
    elsewhere: Elsewhere,
    tiles: Stream,
    sampling: Sampling,
    tell: Callable[[Mapping[str, int]], None],
) -> None:
    """Compute a stream of redrawn pictures."""
    elsewhere.spread(
        SAMPLE_NODE, tiles, lambda groups: sample_parcel(sampling, groups, _heed), tell
    )


def _heed(step: int, total: int) -> None:
    """Between two steps of a tile that is computed here: has the user cancelled?"""
    comfy.model_management.throw_exception_if_processing_interrupted()


def stream(
    sheets: Iterator[Sheet],
    finish: Callable[[Sheet], None],
    static: bool,
    elsewhere: Elsewhere,
) -> Stream:
    """A stream for these devices: so many sheets are open that none of them has to wait."""
    devices = elsewhere.num_devices
    static_devices = devices if static else 0
    return Stream(sheets, finish, static_devices=static_devices, max_open=2 * devices + 2)


def compute_pictures(
    elsewhere: Elsewhere,
    node_id: str,
    class_type: str,
    sheets: Iterator[DriverSheet],
    num_tiles: int,
    compute: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    finish: Callable[[torch.Tensor], torch.Tensor | None],
    *,
    static: bool,
    what: str = "tiles",
) -> None:
    """Compute pictures by tiles. ``finish`` gets each that is done and returns what to show of it.

    The user sees the first one that is not done as far as it is, or the last one that is.
    """
    shown: deque[torch.Tensor | None] = deque([None], maxlen=1)

    def close(sheet: Any) -> None:
        shown.append(finish(sheet.joined()))

    def picture() -> torch.Tensor | None:
        found = _seen(tiles.current)
        return shown[0] if found is None else found

    progress = Progress(node_id, num_tiles, what)
    tiles = stream(sheets, close, static, elsewhere)

    def tell(counts: Mapping[str, int]) -> None:
        progress.tell(tiles.num_taken, counts, picture)

    elsewhere.spread(class_type, tiles, compute, tell)


# Upscale models.


def model_part() -> Part:
    """What workers need to upscale tiles by a model."""
    return Part(class_type=MODEL_NODE, links=("upscale_model",))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUpscale:
    """How a picture is upscaled by a model of spandrel, as ComfyUI does it."""

    upscale_model: Any
    tile: int = 512
    overlap: int = 32
    static: bool = False

    def __post_init__(self) -> None:
        channels = getattr(self.upscale_model, "input_channels", 3)
        if channels != 3:
            raise InputError(
                f"upscale_model takes {channels} channels; connect one of RGB pictures."
            )
        if self.tile < 64:
            raise InputError(f"tile is {self.tile}; give 64 or more.")
        if not 0 <= self.overlap <= self.tile // 2:
            raise InputError(
                f"overlap is {self.overlap}; give 0 to {self.tile // 2}, half of the tile."
            )

    @property
    def scale(self) -> float:
        return float(self.upscale_model.scale)

    def _driver(self, pixels_1CHW: torch.Tensor) -> Driver:
        """ComfyUI's tiled upscale of one picture."""

        def drive(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = comfy.utils.tiled_scale(
                pixels_1CHW, function, tile_x=self.tile, tile_y=self.tile, overlap=self.overlap,
                upscale_amount=self.upscale_model.scale,
            )  # fmt: skip
            return found

        return drive

    def shape_of(self, tile: torch.Tensor) -> tuple[int, ...]:
        height, width = (round(side * self.scale) for side in tile.shape[2:])
        return (tile.shape[0], 3, height, width)

    def sheet(self, picture_1HWC: torch.Tensor) -> DriverSheet:
        pixels_1CHW = picture_1HWC.cpu().movedim(-1, 1)
        return DriverSheet(
            self._driver(pixels_1CHW), self.shape_of, pixels_1CHW, lambda pixels: pixels
        )


def run_model(
    elsewhere: Elsewhere,
    tiles: Stream,
    upscale_model: Any,
    tell: Callable[[Mapping[str, int]], None],
) -> None:
    """Compute a stream of pictures that a model upscales."""
    elsewhere.spread(MODEL_NODE, tiles, lambda found: upscale_tiles(upscale_model, found), tell)


def upscale_tiles(upscale_model: Any, tiles: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each tile through the model."""
    found = []
    for tile in tiles:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with silent():
            found.append(upscale_tile(upscale_model, tile))
    return found


def upscale_by_model(
    elsewhere: Elsewhere,
    node_id: str,
    pixels_BHWC: torch.Tensor,
    how: ModelUpscale,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Pictures [B, H, W, 3] as the model makes them; at another ``size`` if one is given."""
    height, width = (round(side * how.scale) for side in pixels_BHWC.shape[1:3])
    width, height = size or (width, height)
    whole = torch.empty(pixels_BHWC.shape[0], height, width, 3)
    left = iter(whole)

    def finish(pixels_1CHW: torch.Tensor) -> torch.Tensor:
        picture = next(left)
        picture.copy_(resized(pixels_1CHW.movedim(1, -1).clamp(0.0, 1.0), width, height)[0])
        return picture

    per_picture = comfy.utils.get_tiled_scale_steps(
        pixels_BHWC.shape[2], pixels_BHWC.shape[1], how.tile, how.tile, how.overlap
    )
    compute_pictures(
        elsewhere,
        node_id,
        MODEL_NODE,
        (how.sheet(picture_1HWC) for picture_1HWC in pixels_BHWC.split(1)),
        pixels_BHWC.shape[0] * per_picture,
        lambda tiles: upscale_tiles(how.upscale_model, tiles),
        finish,
        static=how.static,
        what="tiles upscaled",
    )
    return whole
