"""ComfyUI's own tiled algorithms with their tiles computed elsewhere.

ComfyUI cuts, weighs and joins; only the function that it calls for each tile is ours. It runs
twice: first to learn what the tiles are made of, then with what came of them. So the result is that
of ComfyUI itself, in each of its versions.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import comfy.model_management
import comfy.utils
import torch

from comfyfleet.errors import ComfyFleetError

#: One tile in, one tile out.
TileFunction: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
#: An algorithm of ComfyUI that calls a function for each tile, one after the other.
Driver: TypeAlias = Callable[[TileFunction], torch.Tensor]

#: ComfyUI's list of loaded models is made for one thread, but tiles of the next picture are cut,
#: and those of the last one joined, in another one than a VAE computes in. Its VAE loads then too.
_loading = threading.Lock()


def tiles_of(driver: Driver, shape_of: Callable[[torch.Tensor], Sequence[int]]) -> list[Any]:
    """What the driver's function is called with, in order. ``shape_of``: what a tile becomes."""
    found: list[torch.Tensor] = []

    def record(tile: torch.Tensor) -> torch.Tensor:
        found.append(tile.cpu())
        return torch.zeros(1).expand(*shape_of(tile))

    with _loading, silent():
        driver(record)
    return found


def glimpse(
    source: torch.Tensor,
    tiles: Sequence[torch.Tensor],
    results: Mapping[int, torch.Tensor],
    side: int,
) -> torch.Tensor:
    """What has come of the first picture so far, [1, C, (1), h, w], about ``side`` large at most.

    ``source`` is what was cut into tiles; ``results`` are those of some of them, by their numbers.
    """
    some = next(iter(results.values()))
    scale = some.shape[-1] / tiles[next(iter(results))].shape[-1]
    height, width = (round(each * scale) for each in source.shape[-2:])
    step = max(1, max(height, width) // side)
    flat = some.shape[2:-2] and (1,)
    found = torch.zeros(1, some.shape[1], *flat, -(-height // step), -(-width // step))
    for number, result in results.items():
        if (place := _place_of(tiles[number], source)) is not None:
            top, left = (round(each * scale) for each in place)
            first = result[:1, :, :1] if flat else result[:1]
            part = first[..., -top % step :: step, -left % step :: step]
            area = found[..., -(-top // step) :, -(-left // step) :]
            height, width = (
                min(*each) for each in zip(part.shape[-2:], area.shape[-2:], strict=True)
            )
            area[..., :height, :width] = part[..., :height, :width]
    return found


def _place_of(tile: torch.Tensor, whole: torch.Tensor) -> tuple[int, int] | None:
    """Row and column of ``whole`` where a tile of it begins; None if the tile is a copy."""
    if tile.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    offset, begins = tile.storage_offset() - whole.storage_offset(), [0] * whole.ndim
    for dim in sorted(range(whole.ndim), key=whole.stride, reverse=True):
        if whole.shape[dim] > 1 and whole.stride(dim):
            begins[dim], offset = divmod(offset, whole.stride(dim))
    return begins[-2], begins[-1]


def joined(driver: Driver, results: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the driver makes of the tiles' results, given in the order of ``tiles_of``."""
    left = iter(results)
    with _loading, silent():
        whole = driver(lambda tile: next(left).to(tile.device))
    if next(left, None) is not None:
        raise ComfyFleetError("fewer tiles were asked for than were computed.")
    return whole


class silent:
    """No progress of tiles that are not computed here.

    The hook is one for the process, and threads overlap: the first takes it, the last puts it back.
    """

    _lock = threading.Lock()
    _inside = 0
    _hook: Any = None

    def __enter__(self) -> None:
        with silent._lock:
            if not silent._inside:
                silent._hook = comfy.utils.PROGRESS_BAR_HOOK
                comfy.utils.set_progress_bar_global_hook(None)
            silent._inside += 1

    def __exit__(self, *_: object) -> None:
        with silent._lock:
            silent._inside -= 1
            if not silent._inside:
                comfy.utils.set_progress_bar_global_hook(silent._hook)


class _Stand:
    """Stands for a VAE's model: decodes or encodes by a function, and is else as the model is."""

    def __init__(self, model: Any, function: TileFunction) -> None:
        self._model = model
        self.decode = self.encode = lambda tile, **_: function(tile)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def with_function(vae: Any, function: TileFunction, dtype: torch.dtype | None = None) -> Any:
    """A VAE of ComfyUI whose model is this function. It gets tiles as they are cut, on the CPU, if
    ``dtype`` is that of what is cut, and needs no memory: each tile asks for its own."""
    stand = copy.copy(vae)
    stand.first_stage_model = _Stand(vae.first_stage_model, function)
    stand.device = torch.device("cpu")
    stand.vae_dtype = dtype or vae.vae_dtype
    stand.memory_used_decode = stand.memory_used_encode = lambda shape, dtype: 0
    return stand


def decode_tile(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """One tile through the VAE's decoder, as ComfyUI's tiled decode calls it, on the CPU."""
    _load(vae, vae.memory_used_decode(latent.shape, vae.vae_dtype))
    given = latent.contiguous().to(vae.vae_dtype).to(vae.device)
    pixels = vae.first_stage_model.decode(given)
    return torch.as_tensor(pixels).float().cpu()


def encode_tile(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """One tile, scaled as the VAE wants it, through the encoder; on the CPU."""
    _load(vae, vae.memory_used_encode(pixels.shape, vae.vae_dtype))
    given = pixels.contiguous().to(vae.vae_dtype).to(vae.device)
    latent = vae.first_stage_model.encode(given)
    return torch.as_tensor(latent).float().cpu()


def _load(vae: Any, memory: float) -> None:
    vae.throw_exception_if_invalid()
    with _loading:
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)


def upscale_tile(upscale_model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """One tile [1, C, height, width] through an upscale model of spandrel, on the CPU."""
    device = _loaded(upscale_model, pixels)
    # As it lies in memory where ComfyUI cuts it out of a picture: kernels are chosen by that.
    given = pixels.contiguous(memory_format=torch.channels_last)
    return torch.as_tensor(upscale_model(given.to(device).float())).cpu()


def _loaded(upscale_model: Any, pixels: torch.Tensor) -> torch.device:
    """Put the model onto its device; not every ComfyUI keeps account of such models."""
    patcher = getattr(upscale_model, "patcher", None)
    #: What such models take for a tile, as ComfyUI estimates it.
    memory = pixels.numel() * pixels.element_size() * max(upscale_model.scale, 1.0) * 384.0
    management = comfy.model_management
    if patcher is not None:
        management.load_models_gpu([patcher], memory_required=memory)
        return patcher.load_device
    device: torch.device = management.get_torch_device()
    if next(upscale_model.model.parameters()).device != device:
        memory += management.module_size(upscale_model.model)
        management.free_memory(memory, device)
        upscale_model.to(device)
    return device
