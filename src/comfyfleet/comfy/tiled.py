"""ComfyUI's own tiled algorithms with their tiles computed elsewhere.

ComfyUI cuts, weighs and joins; only the function that it calls for each tile is ours. It runs
twice: first to learn what the tiles are made of, then with what came of them. So the result is that
of ComfyUI itself, in each of its versions.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import comfy.model_management
import comfy.utils
import torch

from comfyfleet.errors import ComfyFleetError

#: One tile in, one tile out.
TileFunction: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
#: An algorithm of ComfyUI that calls a function for each tile, one after the other.
Driver: TypeAlias = Callable[[TileFunction], torch.Tensor]


def tiles_of(driver: Driver, shape_of: Callable[[torch.Tensor], Sequence[int]]) -> list[Any]:
    """What the driver's function is called with, in order. ``shape_of``: what a tile becomes."""
    found: list[torch.Tensor] = []

    def record(tile: torch.Tensor) -> torch.Tensor:
        found.append(tile.cpu())
        return torch.zeros(1).expand(*shape_of(tile))

    with silent():
        driver(record)
    return found


def joined(driver: Driver, results: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the driver makes of the tiles' results, given in the order of ``tiles_of``."""
    left = iter(results)
    with silent():
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


def with_function(vae: Any, function: TileFunction) -> Any:
    """A VAE of ComfyUI whose model is this function."""
    stand = copy.copy(vae)
    stand.first_stage_model = _Stand(vae.first_stage_model, function)
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
