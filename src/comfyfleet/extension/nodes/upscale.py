"""Pictures upscaled by tiles, on all devices, with the same pixels as on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from comfyfleet.comfy.conditioning import require_croppable
from comfyfleet.comfy.tiles import Sampling, resized
from comfyfleet.errors import InputError
from comfyfleet.extension.spread.elsewhere import Elsewhere, naming, spread
from comfyfleet.extension.spread.upscaling import (
    BLENDS,
    DISTRIBUTIONS,
    ModelUpscale,
    Redraw,
    enlarged_size,
    kind_of,
    model_part,
    redraw,
    require_pictures,
    sample_part,
    upscale_by_model,
    with_colors,
)
from comfyfleet.tiles.steps import MODES, SEAM_FIXES, Layout

#: The largest side that ComfyUI's nodes allow.
MAX_SIDE = 16384
_MAX_SEED = 2**64 - 1


#: Inputs of a node that fixes no seams.
NO_SEAM_FIX = {
    "seam_fix_mode": "None",
    "seam_fix_denoise": 1.0,
    "seam_fix_width": 64,
    "seam_fix_mask_blur": 8,
    "seam_fix_padding": 16,
}


def sampling_inputs(denoise: float = 0.2) -> list[Any]:
    """How each tile is sampled; as in Ultimate SD Upscale."""
    return [
        io.Int.Input("seed", default=0, min=0, max=_MAX_SEED, control_after_generate=True),
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS),
        io.Float.Input("denoise", default=denoise, min=0.0, max=1.0, step=0.01),
    ]


def tile_inputs() -> list[Any]:
    """How the picture is cut; as in Ultimate SD Upscale."""
    return [
        io.Combo.Input(
            "mode_type", options=list(MODES), tooltip="The order of tiles. None: fix seams only."
        ),
        io.Int.Input("tile_width", default=512, min=64, max=MAX_SIDE, step=8),
        io.Int.Input("tile_height", default=512, min=64, max=MAX_SIDE, step=8),
        io.Int.Input(
            "mask_blur", default=8, min=0, max=64, tooltip="Softness of a tile's edges, in pixels."
        ),
        io.Int.Input(
            "tile_padding",
            default=32,
            min=0,
            max=MAX_SIDE,
            step=8,
            tooltip="What a tile sees around itself, in pixels.",
        ),
        io.Combo.Input("seam_fix_mode", options=list(SEAM_FIXES)),
        io.Float.Input("seam_fix_denoise", default=1.0, min=0.0, max=1.0, step=0.01),
        io.Int.Input("seam_fix_width", default=64, min=0, max=MAX_SIDE, step=8),
        io.Int.Input("seam_fix_mask_blur", default=8, min=0, max=64),
        io.Int.Input("seam_fix_padding", default=16, min=0, max=MAX_SIDE, step=8),
        io.Boolean.Input(
            "force_uniform_tiles",
            default=True,
            tooltip="Compute all tiles at one size, with more context at the edges.",
        ),
        io.Boolean.Input("tiled_decode", default=False),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=4096,
            tooltip="Tiles that are sampled in one go. Other pixels than one by one.",
        ),
    ]


def fleet_inputs() -> list[Any]:
    """What only we have."""
    return [
        io.Combo.Input(
            "blend",
            options=list(BLENDS),
            optional=True,
            default=BLENDS[0],
            tooltip="progressive: a tile sees its finished neighbours, as on one device. "
            "independent: all tiles see the picture as it came, and all can be computed at once.",
        ),
        distribution_input(),
    ]


def distribution_input() -> Any:
    """Who takes which tile; last among the inputs, as old workflows do not have it everywhere."""
    return io.Combo.Input(
        "distribution",
        options=list(DISTRIBUTIONS),
        optional=True,
        default=DISTRIBUTIONS[0],
        tooltip="dynamic: whoever is free takes the next tile. static: equal parts, for equal "
        "devices.",
    )


def is_static(distribution: str) -> bool:
    """Raises InputError for what is no distribution."""
    _require_one_of("distribution", distribution, DISTRIBUTIONS)
    return distribution == "static"


def _require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; give one of {', '.join(allowed)}.")


def custom_inputs() -> list[Any]:
    """A sampler and sigmas of the user's own; used if both are there."""
    return [
        io.Sampler.Input("custom_sampler", optional=True),
        io.Sigmas.Input("custom_sigmas", optional=True),
    ]


def sampling_of(inputs: dict[str, Any]) -> Sampling:
    """The inputs that say how each tile is sampled. Raises InputError."""
    custom = (inputs.get("custom_sampler"), inputs.get("custom_sigmas"))
    if (custom[0] is None) != (custom[1] is None):
        given, missing = ("sampler", "sigmas") if custom[1] is None else ("sigmas", "sampler")
        raise InputError(
            f"custom_{given} is connected, but custom_{missing} is not: connect both, or none."
        )
    _require_fitting(inputs["model"], inputs["vae"])
    names = ("model", "positive", "negative", "vae", "seed", "steps", "cfg", "sampler_name")
    return Sampling(
        **{name: inputs[name] for name in names},
        scheduler=inputs["scheduler"],
        tiled_decode=inputs["tiled_decode"],
        custom_sampler=custom[0],
        custom_sigmas=custom[1],
    )


def redraw_of(inputs: dict[str, Any]) -> Redraw:
    """The inputs that say how the picture is cut and put together. Raises InputError."""
    blend = inputs.get("blend", BLENDS[0])
    _require_one_of("blend", blend, BLENDS)
    static = is_static(inputs.get("distribution", DISTRIBUTIONS[0]))
    for name in ("positive", "negative"):
        require_croppable(inputs[name], name, inputs["batch_size"])
    layout = Layout(
        mode=inputs["mode_type"],
        tile_width=inputs["tile_width"],
        tile_height=inputs["tile_height"],
        padding=inputs["tile_padding"],
        mask_blur=inputs["mask_blur"],
        uniform=inputs["force_uniform_tiles"],
        seam_fix=inputs["seam_fix_mode"],
        seam_width=inputs["seam_fix_width"],
        seam_blur=inputs["seam_fix_mask_blur"],
        seam_padding=inputs["seam_fix_padding"],
        unit=inputs["vae"].spacial_compression_encode(),
    )
    return Redraw(
        layout=layout,
        denoise=inputs["denoise"],
        seam_denoise=inputs["seam_fix_denoise"],
        progressive=blend == "progressive",
        static=static,
        batch=inputs["batch_size"],
    )


def _require_fitting(model: Any, vae: Any) -> None:
    vae.throw_exception_if_invalid()
    takes = model.get_model_object("latent_format")
    if takes.latent_channels != vae.latent_channels:
        raise InputError(
            f"the VAE makes latents of {vae.latent_channels} channels, but the model takes "
            f"{takes.latent_channels}: connect the VAE that belongs to the model."
        )
    # Flux and Wan have as many channels.
    if takes.latent_dimensions != vae.latent_dim:
        raise InputError(
            f"this is a VAE of {kind_of(vae.latent_dim)}, but the model makes "
            f"{kind_of(takes.latent_dimensions)}: connect the VAE that belongs to the model."
        )


class FleetUpscale(io.ComfyNode):
    """Ultimate SD Upscale with its tiles computed by all devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetUpscale",
            display_name="Fleet Ultimate Upscale",
            category="fleet",
            description="Enlarges pictures and redraws them by tiles, as Ultimate SD Upscale does. "
            "All devices compute tiles, and the picture is the same as on one.",
            enable_expand=True,
            inputs=[
                io.Image.Input("image"),
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Float.Input("upscale_by", default=2.0, min=0.05, max=8.0, step=0.05),
                *sampling_inputs(),
                *tile_inputs(),
                io.UpscaleModel.Input(
                    "upscale_model", optional=True, tooltip="Without one: Lanczos."
                ),
                *custom_inputs(),
                *fleet_inputs(),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        image, factor = inputs.pop("image"), inputs.pop("upscale_by")
        with naming(cls.hidden, "FleetUpscale"):
            return upscale(cls.hidden, inputs, image, factor)


def upscale(hidden: Any, inputs: dict[str, Any], image: Any, factor: float) -> io.NodeOutput:
    """Enlarge, redraw by tiles, keep alpha. Everything is checked before a tile is computed."""
    colors, alpha = with_colors(require_pictures(image, "image"))
    if not factor > 0:
        raise InputError(f"upscale_by is {factor}; give more than 0.")
    sampling, how = sampling_of(inputs), redraw_of(inputs)
    size = enlarged_size(colors.shape[2], colors.shape[1], factor, how.layout.unit)
    model = None if factor == 1.0 else inputs.get("upscale_model")
    by_model = None if model is None else ModelUpscale(upscale_model=model, static=how.static)
    parts = [sample_part(sampling), *([model_part()] if by_model is not None else [])]
    node_id = hidden.unique_id

    def work(elsewhere: Elsewhere) -> io.NodeOutput:
        if by_model is None:
            pixels = resized(colors, *size)
        else:
            pixels = upscale_by_model(elsewhere, node_id, colors, by_model, size)
        original = (colors.shape[2], colors.shape[1])
        canvas = pixels.float().cpu().clone()
        found = redraw(elsewhere, node_id, canvas, original, how, sampling)
        return io.NodeOutput(joined_alpha(found, alpha))

    return spread(hidden, parts, work)


def joined_alpha(pixels_BHWC: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
    """With the alpha channel at the size that the picture has now."""
    if alpha is None:
        return pixels_BHWC
    height, width = pixels_BHWC.shape[1:3]
    return torch.cat([pixels_BHWC, resized(alpha, width, height)], dim=-1)


class FleetModelUpscale(io.ComfyNode):
    """Upscale by a model, with its tiles computed by all devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetModelUpscale",
            display_name="Fleet Model Upscale",
            category="fleet",
            description="Upscale Image (using Model) with its tiles computed by all devices, and "
            "the same picture.",
            enable_expand=True,
            inputs=[
                io.UpscaleModel.Input("upscale_model"),
                io.Image.Input("image"),
                *model_inputs(),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        hidden = cls.hidden
        with naming(hidden, "FleetModelUpscale"):
            colors, alpha = with_colors(require_pictures(inputs["image"], "image"))
            how = model_upscale_of(inputs)

        def work(elsewhere: Elsewhere) -> io.NodeOutput:
            found = upscale_by_model(elsewhere, hidden.unique_id, colors, how)
            return io.NodeOutput(joined_alpha(found, alpha))

        return spread(hidden, [model_part()], work)


def model_inputs() -> list[Any]:
    """How a picture is cut for an upscale model; the defaults are what ComfyUI does."""
    return [
        io.Int.Input("tile", optional=True, default=512, min=64, max=MAX_SIDE, step=8),
        io.Int.Input("overlap", optional=True, default=32, min=0, max=1024),
        distribution_input(),
    ]


def model_upscale_of(inputs: dict[str, Any]) -> ModelUpscale:
    """The inputs that say how a model upscales. Raises InputError."""
    return ModelUpscale(
        upscale_model=inputs["upscale_model"],
        tile=inputs.get("tile", 512),
        overlap=inputs.get("overlap", 32),
        static=is_static(inputs.get("distribution", DISTRIBUTIONS[0])),
    )
