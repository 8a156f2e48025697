"""VAE decode and encode on all devices."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from comfyfleet.errors import InputError
from comfyfleet.extension.gang import exact_vae
from comfyfleet.extension.nodes.internal import INTERNAL
from comfyfleet.extension.nodes.upscale import distribution_input, is_static
from comfyfleet.extension.spread.elsewhere import Elsewhere, naming, spread
from comfyfleet.extension.spread.upscaling import (
    DISTRIBUTIONS,
    kind_of,
    require_pictures,
    with_colors,
)
from comfyfleet.extension.spread.vae import (
    DECODE_NODE,
    ENCODE_NODE,
    Tiling,
    decode_part,
    decode_tiles,
    decoded,
    encode_part,
    encode_tiles,
    encoded,
)

#: By ComfyUI's tiles, or undivided by rows.
MODES = ("tiled", "exact")


def _tile_inputs() -> list[Any]:
    return [
        io.Int.Input("tile_size", default=512, min=64, max=4096, step=32),
        io.Int.Input("overlap", default=64, min=0, max=1024, step=32),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            optional=True,
            default=MODES[0],
            tooltip="tiled: as VAE Decode (Tiled) or VAE Encode (Tiled). exact: as without tiles, "
            "each device with a part of the rows; for VAEs of pictures.",
        ),
        distribution_input(),
    ]


def _require_mode(mode: str) -> None:
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; give {' or '.join(MODES)}.")


def _tiling_of(
    vae: Any, tile_size: int, overlap: int, distribution: str = DISTRIBUTIONS[0]
) -> Tiling:
    static = is_static(distribution)
    return Tiling(vae=vae, tile_size=tile_size, overlap=overlap, static=static)


class FleetVAEDecode(io.ComfyNode):
    """VAE Decode (Tiled) with its tiles computed by all devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetVAEDecode",
            display_name="Fleet VAE Decode",
            category="fleet",
            description="VAE Decode (Tiled) on all devices, with the same result. The frames of a "
            "video are never cut in time.",
            enable_expand=True,
            inputs=[io.Latent.Input("samples"), io.Vae.Input("vae"), *_tile_inputs()],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, mode: str = MODES[0], **inputs: Any) -> io.NodeOutput:
        hidden = cls.hidden
        with naming(hidden, "FleetVAEDecode"):
            _require_mode(mode)
            latent = _latent_of(samples, vae)
            if mode == "exact":
                pixels = exact_vae.decode(hidden, vae, latent)
                return io.NodeOutput(pixels.reshape(-1, *pixels.shape[-3:]))
            tiling = _tiling_of(vae, **inputs)

        def work(elsewhere: Elsewhere) -> io.NodeOutput:
            return io.NodeOutput(decoded(elsewhere, hidden.unique_id, tiling, latent))

        return spread(hidden, [decode_part()], work)


class FleetVAEEncode(io.ComfyNode):
    """VAE Encode (Tiled) with its tiles computed by all devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetVAEEncode",
            display_name="Fleet VAE Encode",
            category="fleet",
            description="VAE Encode (Tiled) on all devices, with the same result. The frames of a "
            "video are never cut in time.",
            enable_expand=True,
            inputs=[io.Image.Input("pixels"), io.Vae.Input("vae"), *_tile_inputs()],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, pixels: Any, vae: Any, mode: str = MODES[0], **inputs: Any) -> io.NodeOutput:
        hidden = cls.hidden
        with naming(hidden, "FleetVAEEncode"):
            _require_mode(mode)
            colors, _ = with_colors(require_pictures(pixels, "pixels"))
            _require_no_sound(vae)
            _require_size(colors, int(vae.spacial_compression_decode()))
            if mode == "exact":
                return io.NodeOutput({"samples": exact_vae.encode(hidden, vae, colors)})
            tiling = _tiling_of(vae, **inputs)

        def work(elsewhere: Elsewhere) -> io.NodeOutput:
            samples = encoded(elsewhere, hidden.unique_id, tiling, colors)
            return io.NodeOutput({"samples": samples})

        return spread(hidden, [encode_part()], work)


def _latent_of(samples: Any, vae: Any) -> torch.Tensor:
    """The latent to decode. Raises InputError if the VAE cannot take it."""
    vae.throw_exception_if_invalid()
    latent = samples["samples"]
    if getattr(latent, "is_nested", False):
        latent = latent.unbind()[0]
    dims = latent.ndim - 2
    if dims not in (2, 3) or 0 in latent.shape:
        raise InputError(
            f"samples is a latent of shape {tuple(latent.shape)}; give pictures or a video of one "
            "pixel or more. Sound needs ComfyUI's own VAE Decode Audio."
        )
    if dims == vae.latent_dim:
        _require_no_sound(vae)
    if latent.shape[1] != vae.latent_channels:
        raise InputError(
            f"samples has {latent.shape[1]} channels, but the VAE takes {vae.latent_channels}: "
            "connect the VAE that belongs to the model."
        )
    if dims != vae.latent_dim:
        raise InputError(
            f"samples is a latent of {kind_of(dims)}, but this is a VAE of "
            f"{kind_of(vae.latent_dim)}: connect the VAE that belongs to the model."
        )
    found: torch.Tensor = latent
    return found


def _require_no_sound(vae: Any) -> None:
    vae.throw_exception_if_invalid()
    # Latents of some, as ACE-Step's, have the form of a picture's; sound is stereo.
    if vae.latent_dim == 1 or vae.output_channels == 2:
        raise InputError("this is a VAE of sound: connect the one that belongs to the model.")


def _require_size(pixels_BHWC: torch.Tensor, least: int) -> None:
    height, width = pixels_BHWC.shape[1:3]
    if min(height, width) < least:
        raise InputError(f"pixels is {width} x {height}; the VAE needs {least} x {least} or more.")


class FleetDecodeTiles(io.ComfyNode):
    """Tiles of a latent through a VAE, on a worker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _internal(DECODE_NODE, "Fleet Decode Tiles (internal)")

    @classmethod
    def execute(cls, vae: Any, task: list[torch.Tensor]) -> io.NodeOutput:
        return io.NodeOutput(decode_tiles(vae, task))


class FleetEncodeTiles(io.ComfyNode):
    """Tiles of a picture through a VAE, on a worker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _internal(ENCODE_NODE, "Fleet Encode Tiles (internal)")

    @classmethod
    def execute(cls, vae: Any, task: list[torch.Tensor]) -> io.NodeOutput:
        return io.NodeOutput(encode_tiles(vae, task))


def _internal(node_id: str, display_name: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=INTERNAL,
        description="Computes tiles for a VAE. ComfyFleet adds it by itself.",
        inputs=[io.Vae.Input("vae"), io.AnyType.Input("task")],
        outputs=[io.AnyType.Output("tiles", "tiles")],
    )
