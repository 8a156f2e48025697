"""VAEs by tiles on all devices: ComfyUI's own tiled decode and encode, its tiles spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from comfyfleet.comfy.tiled import Driver, decode_tile, encode_tile, silent, with_function
from comfyfleet.comfy.tiles import is_video
from comfyfleet.errors import InputError
from comfyfleet.extension.elsewhere import Elsewhere, Part
from comfyfleet.extension.sheets import DriverSheet, Stream
from comfyfleet.extension.upscaling import Progress

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
    vae = tiling.vae
    if tiling.is_own:
        pixels = tiling.decode(latent, vae)
    else:
        pixels = _spread(
            elsewhere,
            node_id,
            DECODE_NODE,
            lambda function: tiling.decode(latent, with_function(vae, function)),
            lambda tile: _decoded_shape(vae, tile),
            lambda tiles: decode_tiles(vae, tiles),
        )
    return pixels.reshape(-1, *pixels.shape[-3:])


def encoded(
    elsewhere: Elsewhere, node_id: str, tiling: Tiling, pixels_BHWC: torch.Tensor
) -> torch.Tensor:
    """Pictures, or a video's frames, encoded by tiles."""
    vae = tiling.vae
    if tiling.is_own:
        return tiling.encode(pixels_BHWC, vae)
    return _spread(
        elsewhere,
        node_id,
        ENCODE_NODE,
        lambda function: tiling.encode(pixels_BHWC, with_function(vae, function)),
        lambda tile: _encoded_shape(vae, tile),
        lambda tiles: encode_tiles(vae, tiles),
    )


def _spread(
    elsewhere: Elsewhere,
    node_id: str,
    class_type: str,
    driver: Driver,
    shape_of: Callable[[torch.Tensor], tuple[int, ...]],
    compute: Callable[[list[torch.Tensor]], list[torch.Tensor]],
) -> torch.Tensor:
    sheet = DriverSheet(driver, shape_of)
    progress = Progress(node_id, sheet.num_tiles, "tiles")
    stream = Stream(iter([sheet]), lambda done: None)

    def tell(counts: Mapping[str, int]) -> None:
        progress.tell(stream.num_taken, counts, lambda: None)

    elsewhere.spread(class_type, stream, compute, tell)
    return sheet.joined()


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
