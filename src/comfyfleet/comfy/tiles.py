"""Tiles of a picture through a sampler, as on the device of this process.

A *parcel* is plain data: what one or more groups of tiles are computed from. Everything else (the
model, the prompt, the VAE, how to sample) is equal for all parcels of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import nodes
import numpy as np
import torch
from PIL import Image

from comfyfleet.comfy.conditioning import Views, crop_conditioning, crop_model
from comfyfleet.comfy.tiled import silent
from comfyfleet.errors import InputError
from comfyfleet.tiles.geometry import Rect

#: Frames that a video's batch is filled up by, at most, until its VAE takes it whole.
_MAX_FILL = 64
#: Size of the tiles of a tiled decode, as ComfyUI's node has it.
_DECODE_TILE = 512

#: Told how many steps of how many are done.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How every tile of a picture is computed."""

    model: Any
    positive: Any
    negative: Any
    vae: Any
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    tiled_decode: bool = False
    #: Used if both are there; then steps, sampler_name, scheduler and denoise count for nothing.
    custom_sampler: Any = None
    custom_sigmas: torch.Tensor | None = None

    @property
    def is_custom(self) -> bool:
        return self.custom_sampler is not None and self.custom_sigmas is not None

    @property
    def num_steps(self) -> int:
        return len(self.custom_sigmas) - 1 if self.custom_sigmas is not None else self.steps


def group_parcel(
    crops: Sequence[torch.Tensor], views: Views, noise: Sequence[int] | None, denoise: float
) -> dict[str, Any]:
    """Tiles that are sampled as one batch, as plain data. ``noise``: their places in the batch
    whose noise they get; None: as they come."""
    return {
        "crops": list(crops),
        "rects": [(each.left, each.top, each.right, each.bottom) for each in views.crops],
        "picture": views.picture,
        "original": views.original,
        "size": views.size,
        "unit": views.unit,
        "pictures": (views.first, views.count, views.total),
        "noise": None if noise is None else list(noise),
        "denoise": denoise,
    }


def sample_parcel(
    sampling: Sampling, groups: Sequence[Mapping[str, Any]], on_step: OnStep
) -> list[list[torch.Tensor]]:
    """What comes of each group: its tiles, [B, height, width, 3], each as large as its crop."""
    total, done = len(groups) * max(1, sampling.num_steps), 0
    found = []
    for group in groups:
        begun = done

        def told(step: int, *_: Any, begun: int = begun) -> None:
            on_step(min(begun + step + 1, total), total)

        found.append(_sample(sampling, group, told))
        done += max(1, sampling.num_steps)
    return found


def _sample(
    sampling: Sampling, group: Mapping[str, Any], callback: Callable[..., None]
) -> list[torch.Tensor]:
    views, crops = _views(group), group["crops"]
    pixels = torch.cat([resized(crop, *views.size) for crop in crops])
    latent = _encode(sampling.vae, pixels)
    noise = comfy.sample.prepare_noise(latent, sampling.seed, group["noise"])
    positive = crop_conditioning(sampling.positive, views)
    negative = crop_conditioning(sampling.negative, views)
    model = crop_model(sampling.model, views)
    how: dict[str, Any] = {
        "callback": callback,
        "disable_pbar": True,
        "seed": sampling.seed,
    }
    if sampling.is_custom:
        samples = comfy.sample.sample_custom(
            model, noise, sampling.cfg, sampling.custom_sampler, sampling.custom_sigmas,
            positive, negative, latent, **how,
        )  # fmt: skip
    else:
        samples = comfy.sample.sample(
            model, noise, sampling.steps, sampling.cfg, sampling.sampler_name, sampling.scheduler,
            positive, negative, latent, denoise=group["denoise"], **how,
        )  # fmt: skip
    tiles = _decode(sampling, samples)[: pixels.shape[0]].split([each.shape[0] for each in crops])
    return [
        resized(tile, crop.shape[2], crop.shape[1]).float()
        for tile, crop in zip(tiles, crops, strict=True)
    ]


def _views(group: Mapping[str, Any]) -> Views:
    first, count, total = group["pictures"]
    return Views(
        crops=tuple(Rect(*each) for each in group["rects"]),
        picture=tuple(group["picture"]),
        original=tuple(group["original"]),
        size=tuple(group["size"]),
        unit=group["unit"],
        first=first,
        count=count,
        total=total,
    )


def is_video(vae: Any) -> bool:
    """Does the VAE take a batch of pictures for the frames of one video?"""
    return vae.latent_dim == 3 and not getattr(vae, "not_video", False)


def _encode(vae: Any, pixels_BHWC: torch.Tensor) -> torch.Tensor:
    if is_video(vae):
        pixels_BHWC = _filled(vae, pixels_BHWC)
    latent: torch.Tensor = nodes.VAEEncode().encode(vae, pixels_BHWC)[0]["samples"]
    return latent


def _filled(vae: Any, frames_BHWC: torch.Tensor) -> torch.Tensor:
    """The frames, and the last one again until the VAE leaves none of them out."""
    down, up, count = vae.downscale_ratio[0], vae.upscale_ratio[0], frames_BHWC.shape[0]
    for longer in range(count, count + _MAX_FILL):
        if up(down(longer)) == longer:
            more = frames_BHWC[-1:].expand(longer - count, *frames_BHWC.shape[1:])
            return torch.cat([frames_BHWC, more])
    raise InputError(f"the VAE takes no batch of {count} to {count + _MAX_FILL} frames.")


def _decode(sampling: Sampling, samples: torch.Tensor) -> torch.Tensor:
    latent = {"samples": samples}
    if sampling.tiled_decode:
        with silent():  # the bar of the node counts whole tiles
            pixels = nodes.VAEDecodeTiled().decode(sampling.vae, latent, _DECODE_TILE)[0]
    else:
        pixels = nodes.VAEDecode().decode(sampling.vae, latent)[0]
    return torch.as_tensor(pixels)[..., :3]


def resized(pictures_BHWC: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Pictures at another size by Lanczos, each colour in floats; the same if they have that.

    It makes edges brighter than white and darker than black, which other nodes do not expect: cut.
    """
    if pictures_BHWC.shape[1:3] == (height, width):
        return pictures_BHWC
    planes = pictures_BHWC.float().cpu().movedim(-1, 1).reshape(-1, *pictures_BHWC.shape[1:3])
    found = [
        np.asarray(
            Image.fromarray(plane.numpy(), "F").resize((width, height), Image.Resampling.LANCZOS)
        )
        for plane in planes.contiguous()
    ]
    shape = (pictures_BHWC.shape[0], pictures_BHWC.shape[3], height, width)
    found_BCHW = torch.from_numpy(np.stack(found)).clamp_(0.0, 1.0).reshape(shape)
    return found_BCHW.movedim(1, -1).contiguous()
