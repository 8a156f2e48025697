"""VAEs by tiles on all devices: ComfyUI's own tiled decode and encode, its tiles spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from comfyfleet.comfy.tiled import decode_tile, encode_tile, silent, with_function
from comfyfleet.comfy.tiles import is_video
from comfyfleet.errors import InputError
from comfyfleet.extension.spread.elsewhere import Elsewhere, Part
from comfyfleet.extension.spread.sheets import DriverSheet
from comfyfleet.extension.spread.upscaling import compute_pictures, portions

DECODE_NODE = "FleetDecodeTiles"
ENCODE_NODE = "FleetEncodeTiles"
#: Larger than any video: the whole time axis is one tile.
_ALL_FRAMES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Tiles of a VAE in pixels, as in ComfyUI's tiled nodes.

    Raises InputError for what makes no tiles. Time is never cut: a causal VAE that begins anew in
    the middle of a video gives other frames.
    """

    vae: Any
    tile_size: int = 512
    overlap: int = 64
    static: bool = False

    def __post_init__(self) -> None:
        self.vae.throw_exception_if_invalid()
        least = 4 * self.compression
        if self.tile_size < max(64, least):
            raise InputError(f"tile_size is {self.tile_size}; give {max(64, least)} or more.")
        if not 0 <= self.overlap <= self.tile_size // 4:
            raise InputError(
                f"overlap is {self.overlap}; give 0 to {self.tile_size // 4}, a quarter of "
                "tile_size."
            )

    @property
    def compression(self) -> int:
        return int(self.vae.spacial_compression_decode())

    @property
    def is_own(self) -> bool:
        """Does the VAE cut tiles itself, so that nobody else can?"""
        return bool(getattr(self.vae, "handles_tiling", False))

    def decode(self, latent: torch.Tensor, vae: Any) -> torch.Tensor:
        """ComfyUI's tiled decode of [B, C, (T), h, w] by this VAE, [B, (T), H, W, 3]."""
        side, overlap = self.tile_size // self.compression, self.overlap // self.compression
        time = {"tile_t": _ALL_FRAMES, "overlap_t": 1} if latent.ndim == 5 else {}
        found: torch.Tensor = vae.decode_tiled(
            latent, tile_x=side, tile_y=side, overlap=overlap, **time
        )
        return found

    def encode(self, pixels_BHWC: torch.Tensor, vae: Any) -> torch.Tensor:
        """ComfyUI's tiled encode by this VAE."""
        # Half a tile must be whole latents too.
        side = self.tile_size - self.tile_size % (2 * self.compression)
        overlap = self.overlap - self.overlap % self.compression
        found: torch.Tensor = vae.encode_tiled(
            pixels_BHWC, tile_x=side, tile_y=side, overlap=overlap
        )
        return found


def decoded(
    elsewhere: Elsewhere, node_id: str, tiling: Tiling, latent: torch.Tensor
) -> torch.Tensor:
    """A latent decoded by tiles, [pictures or frames, H, W, 3]."""
    if tiling.is_own:
        pixels = tiling.decode(latent, tiling.vae)
    else:
        sheets = [partial(_decode_sheet, tiling, each) for each in latent.cpu().split(1)]
        pixels = _spread(elsewhere, node_id, DECODE_NODE, tiling, sheets, decode_tiles)
    return pixels.reshape(-1, *pixels.shape[-3:])


def encoded(
    elsewhere: Elsewhere, node_id: str, tiling: Tiling, pixels_BHWC: torch.Tensor
) -> torch.Tensor:
    """Pictures, or a video's frames, encoded by tiles."""
    if tiling.is_own:
        return tiling.encode(pixels_BHWC, tiling.vae)
    sheets = [
        partial(_encode_sheet, tiling, pixels_BHWC[first : first + count])
        for first, count in portions(pixels_BHWC.shape[0], tiling.vae)
    ]
    return _spread(elsewhere, node_id, ENCODE_NODE, tiling, sheets, encode_tiles)


def _decode_sheet(tiling: Tiling, latent: torch.Tensor) -> DriverSheet:
    vae = tiling.vae
    return DriverSheet(
        lambda function: tiling.decode(latent, with_function(vae, function, latent.dtype)),
        lambda tile: _decoded_shape(vae, tile),
        latent,
        vae.process_output,
    )


def _encode_sheet(tiling: Tiling, pixels_BHWC: torch.Tensor) -> DriverSheet:
    vae = tiling.vae
    return DriverSheet(
        lambda function: tiling.encode(pixels_BHWC, with_function(vae, function)),
        lambda tile: _encoded_shape(vae, tile),
        pixels_BHWC,
    )


def _spread(
    elsewhere: Elsewhere,
    node_id: str,
    class_type: str,
    tiling: Tiling,
    sheets: Sequence[Callable[[], DriverSheet]],
    compute: Callable[[Any, list[torch.Tensor]], list[torch.Tensor]],
) -> torch.Tensor:
    """Compute sheets of equal size, each made when it is its turn; what they give, one batch."""
    found: list[torch.Tensor] = []

    def finish(whole: torch.Tensor) -> torch.Tensor | None:
        found.append(whole)
        return (
            whole.reshape(-1, *whole.shape[-3:])[0, ..., :3] if class_type == DECODE_NODE else None
        )

    first = sheets[0]()
    compute_pictures(
        elsewhere,
        node_id,
        class_type,
        chain([first], (make() for make in sheets[1:])),
        len(sheets) * first.num_tiles,
        partial(compute, tiling.vae),
        finish,
        static=tiling.static,
    )
    return found[0] if len(found) == 1 else torch.cat(found)


def decode_part() -> Part:
    """What workers need to decode tiles."""
    return Part(class_type=DECODE_NODE, links=("vae",))


def encode_part() -> Part:
    """What workers need to encode tiles."""
    return Part(class_type=ENCODE_NODE, links=("vae",))


def decode_tiles(vae: Any, tiles: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each tile through the decoder, not yet scaled to 0 to 1."""
    with silent():
        return [decode_tile(vae, tile) for tile in tiles]


def encode_tiles(vae: Any, tiles: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each tile through the encoder."""
    with silent():
        return [encode_tile(vae, tile) for tile in tiles]


def _decoded_shape(vae: Any, latent: torch.Tensor) -> tuple[int, ...]:
    return (latent.shape[0], vae.output_channels, *_scaled(vae.upscale_ratio, latent))


def _encoded_shape(vae: Any, pixels: torch.Tensor) -> tuple[int, ...]:
    ratio = vae.downscale_ratio
    if is_video(vae) or isinstance(ratio, tuple | list):
        return (pixels.shape[0], vae.latent_channels, *_scaled(ratio, pixels, down=True))
    return (pixels.shape[0], vae.latent_channels, *(side // ratio for side in pixels.shape[2:]))


def _scaled(ratio: Any, tile: torch.Tensor, *, down: bool = False) -> tuple[int, ...]:
    """Sizes along time and space; a ratio may be a number, or a function for time."""
    sides = tile.shape[2:]
    ratios = ratio if isinstance(ratio, tuple | list) else (ratio,) * len(sides)
    return tuple(
        round(each(side) if callable(each) else side / each if down else side * each)
        for each, side in zip(ratios, sides, strict=True)
    )
