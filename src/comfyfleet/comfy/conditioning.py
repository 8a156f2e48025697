"""What conditionings and model patches say of places in a picture, as one tile of it sees it.

As in Ultimate SD Upscale: hints of ControlNets, areas, masks, GLIGEN boxes and latents of the whole
picture are cut to the tile. B: batch, H, W: size in pixels of a hint or a mask, h, w: in latents.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from comfyfleet.errors import InputError
from comfyfleet.tiles.geometry import Rect

#: Pixels per unit of the areas and GLIGEN boxes that ComfyUI's nodes make, whatever the VAE is. Its
#: samplers count them in latents.
_UNIT = 8
#: Keys of conditionings with values that say where something is, one picture's worth each.
_REGIONAL = ("area", "mask", "gligen")
#: Keys with latents of the whole picture, one or a list, that models put beside the noise: they
#: must have its size.
_BESIDE_NOISE = (
    "concat_image",
    "concat_latent_image",
    "control_video",
    "time_dim_concat",
    "time_dim_replace",
    "vace_frames",
    "vace_mask",
)
#: Those that may be larger or smaller than the noise; Flux Fill needs its mask in pixels.
_REFERENCES = (
    "concat_mask",
    "context_latents",
    "driving_mask_28ch",
    "lq_latent",
    "pose_video_latent",
    "ref_latent",
    "ref_mask_28ch",
    "reference_latents",
    "reference_motion",
)
#: Key with the rays of a camera, one for each pixel of the whole picture and frame.
_RAYS = "camera_conditions"

Conditioning = Sequence[tuple[Any, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Tiles that are computed in one go: which parts of which pictures, and how large."""

    #: Where each tile lies in the picture.
    crops: tuple[Rect, ...]
    #: Width and height of the picture, and of the one that the conditioning was made for.
    picture: tuple[int, int]
    original: tuple[int, int]
    #: Width and height at which tiles are computed.
    size: tuple[int, int]
    #: Pixels per latent: the VAE's compression.
    unit: int
    #: Which pictures of the batch these are, and how many that has.
    first: int
    count: int
    total: int

    @property
    def latents(self) -> tuple[int, int]:
        """Width and height of a tile in latents."""
        width, height = (max(1, math.ceil(side / self.unit)) for side in self.size)
        return width, height


def require_croppable(conditioning: Conditioning, name: str, batch: int) -> None:
    """Raise InputError, naming the input, for what cannot be cut to tiles, ``batch`` in one go."""
    for _, extra in conditioning:
        regions = [key for key in _REGIONAL if extra.get(key) is not None]
        if batch > 1 and regions:
            raise InputError(
                f"batch_size is {batch}, and {name} has regions ({', '.join(regions)}), which "
                "differ from tile to tile. Set batch_size to 1."
            )
        kind = extra["gligen"][0] if extra.get("gligen") is not None else "position"
        if kind != "position":
            raise InputError(
                f"{name} has GLIGEN of kind {kind!r}, which cannot be cut into tiles; only "
                "'position' can."
            )


def crop_conditioning(conditioning: Conditioning, views: Views) -> list[list[Any]]:
    """The conditioning of these tiles; regions that do not reach them are left out.

    If none reaches them, all apply to the whole tile. See ``require_croppable``.
    """
    require_croppable(conditioning, "the conditioning", len(views.crops))
    cropped = [(embedding, _cropped(extra, views)) for embedding, extra in conditioning]
    reached = [[embedding, extra] for embedding, extra in cropped if extra is not None]
    if reached or not conditioning:
        return reached
    return [
        [embedding, _cropped({k: v for k, v in extra.items() if k != "area"}, views)]
        for embedding, extra in conditioning
    ]


def _cropped(extra: Mapping[str, Any], views: Views) -> dict[str, Any] | None:
    """The conditioning's options for these tiles; None if its area does not reach them."""
    found = dict(extra)
    if found.get("area") is not None:
        area = _crop_area(found["area"], views)
        if area is None:
            return None
        found["area"] = area
    if found.get("mask") is not None:
        found["mask"] = _resized(_select(found["mask"], views), views, "bilinear")
    if found.get("gligen") is not None:
        found["gligen"] = _crop_gligen(found["gligen"], views)
    if found.get("control") is not None:
        found["control"] = _crop_control(found["control"], views)
    if found.get(_RAYS) is not None:
        found[_RAYS] = _resized(_select(found[_RAYS], views), views, "bilinear")
    for key in (*_BESIDE_NOISE, *_REFERENCES):
        crop = partial(_crop_latent, views=views, fit=key in _BESIDE_NOISE)
        if isinstance(found.get(key), torch.Tensor):
            found[key] = crop(found[key])
        elif isinstance(found.get(key), list):
            found[key] = [crop(each) for each in found[key]]
    return found


def _crop_area(area: Sequence[Any], views: Views) -> tuple[Any, ...] | None:
    """An area as the tile sees it, in latents: (height, width, y, x).

    It is given in units or in parts of the picture; that of a video has its time too, in parts.
    """
    if area[0] == "percentage":
        middle = len(area) // 2 + 1
        (*length, height, width), (*begin, y, x) = area[1:middle], area[middle:]
        across, down = views.original
    else:
        length, begin, (height, width, y, x) = [], [], area
        across = down = _UNIT
    box = _crop_box(y * down, (y + height) * down, x * across, (x + width) * across, views)
    if box is None or not length:
        return box
    columns, rows = views.latents
    sides = (box[0] / rows, box[1] / columns)
    return ("percentage", *length, *sides, *begin, box[2] / rows, box[3] / columns)


def _crop_box(
    top: float, bottom: float, left: float, right: float, views: Views
) -> tuple[int, int, int, int] | None:
    """Pixels of the original as the tile's latents: height, width, y, x; None if it has none."""
    left, right = _along(left, right, views, 0)
    top, bottom = _along(top, bottom, views, 1)
    if left >= right or top >= bottom:
        return None
    ends = [round(each / views.unit) for each in (top, bottom, left, right)]
    # What begins in the last half of a latent is rounded past the tile's end: the last is meant.
    y, x = min(ends[0], views.latents[1] - 1), min(ends[2], views.latents[0] - 1)
    return (max(1, ends[1] - y), max(1, ends[3] - x), y, x)


def _along(begin: float, end: float, views: Views, axis: int) -> tuple[float, float]:
    """Pixels of the original, along one axis, as pixels of the tile; empty where it is outside."""
    crop = views.crops[0]
    low, side = ((crop.left, crop.width), (crop.top, crop.height))[axis]
    to_picture, to_tile = views.picture[axis] / views.original[axis], views.size[axis] / side
    return (
        max(0.0, (begin * to_picture - low) * to_tile),
        min(float(views.size[axis]), (end * to_picture - low) * to_tile),
    )


def _crop_gligen(gligen: Sequence[Any], views: Views) -> tuple[Any, ...]:
    """Boxes (embedding, height, width, y, x) as the tile sees them; others are left out."""
    kind, model, boxes = gligen
    found = []
    for embedding, height, width, y, x in boxes:
        area = _crop_area((height, width, y, x), views)
        if area is not None:
            found.append((embedding, *area))
    return kind, model, found


def _crop_control(control: Any, views: Views) -> Any:
    """A copy of a ControlNet, and of those before it, with the hints of these tiles."""
    found = control.copy()
    if isinstance(control.cond_hint_original, torch.Tensor):
        hint = _select(control.cond_hint_original, views)
        found.cond_hint_original = _resized(hint, views, "nearest-exact")
    found.extra_concat_orig = [
        _resized(_select(each, views), views, "nearest-exact") if each.numel() > 1 else each
        for each in control.extra_concat_orig
    ]
    if control.previous_controlnet is not None:
        found.set_previous_controlnet(_crop_control(control.previous_controlnet, views))
    return found


def _crop_latent(latent: torch.Tensor, views: Views, *, fit: bool) -> torch.Tensor:
    """Latents [B, C, (T), h, w] of the whole picture: the tiles' parts.

    They are made as large as the tiles' latents if they must ``fit``, else their compression is the
    one by which they are smaller than the picture.
    """
    chosen = _select(latent, views)
    size = views.latents[::-1] if fit else _own_size(latent, views)
    # Frames, if there are some, go along with the batch for a moment.
    flat = chosen.movedim(1, -3).reshape(-1, latent.shape[1], *latent.shape[-2:])
    tiles = [_fitted(_part(flat, crop, views), size, "bilinear") for crop in views.crops]
    frames = latent.shape[2:-2]
    found = [each.reshape(-1, *frames, latent.shape[1], *size).movedim(-3, 1) for each in tiles]
    return torch.cat(found)


def _own_size(latent: torch.Tensor, views: Views) -> tuple[int, ...]:
    """Height and width of a tile in such latents."""
    return tuple(
        max(1, round(views.size[1 - axis] * latent.shape[axis - 2] / views.picture[1 - axis]))
        for axis in (0, 1)
    )


def _select(batch: torch.Tensor, views: Views) -> torch.Tensor:
    """The entries of these pictures, if there is one for each picture of the batch."""
    if views.total > 1 and batch.shape[0] == views.total:
        return batch[views.first : views.first + views.count]
    return batch


def _resized(pictures: torch.Tensor, views: Views, how: str) -> torch.Tensor:
    """The tiles' parts of something as large as the picture, [B, (C), H, W], at the tiles' size."""
    flat = pictures if pictures.ndim == 4 else pictures.reshape(-1, 1, *pictures.shape[-2:])
    size = (views.size[1], views.size[0])
    tiles = torch.cat([_fitted(_part(flat, crop, views), size, how) for crop in views.crops])
    return tiles if pictures.ndim == 4 else tiles.reshape(-1, *pictures.shape[1:-2], *size)


def _part(pictures: torch.Tensor, crop: Rect, views: Views) -> torch.Tensor:
    """The part of [B, C, H, W] that lies where the crop lies in the picture; one pixel at least."""
    across = pictures.shape[-1] / views.picture[0]
    down = pictures.shape[-2] / views.picture[1]
    left, top = math.floor(crop.left * across), math.floor(crop.top * down)
    right, bottom = math.ceil(crop.right * across), math.ceil(crop.bottom * down)
    return pictures[:, :, top : max(bottom, top + 1), left : max(right, left + 1)]


def _fitted(pictures: torch.Tensor, size: tuple[int, ...], how: str) -> torch.Tensor:
    return pictures if pictures.shape[-2:] == size else F.interpolate(pictures, size, mode=how)


def crop_model(model: Any, views: Views) -> Any:
    """The model with patches that hold a picture (control models as patches) cut to these tiles.

    The same model if it has none. ComfyUI's own are DiffSynthCnetPatch and ZImageControlPatch.
    """
    patches = model.model_options.get("transformer_options", {}).get("patches", {})
    holding = {id(each): each for found in patches.values() for each in found if _holds(each)}
    if not holding:
        return model
    cut = {key: _crop_patch(patch, views) for key, patch in holding.items()}
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    options["patches"] = {
        name: [cut.get(id(each), each) for each in found] for name, found in patches.items()
    }
    return clone


def _holds(patch: Any) -> bool:
    return hasattr(patch, "encode_latent_cond") and hasattr(patch, "image")


def _crop_patch(patch: Any, views: Views) -> Any:
    """The patch made anew, as its node makes it, with the tiles' parts of its pictures."""
    cut: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "image": lambda x: _resized(_select(x, views).movedim(-1, 1), views, "area").movedim(1, -1),
        "mask": lambda x: _resized(_select(x, views), views, "bilinear"),
    }
    cut["inpaint_image"] = cut["image"]
    names = [name for name in inspect.signature(type(patch).__init__).parameters if name != "self"]
    given = {name: getattr(patch, name) for name in names}
    for name, crop in cut.items():
        if isinstance(given.get(name), torch.Tensor):
            given[name] = crop(given[name])
    return type(patch)(**given)
