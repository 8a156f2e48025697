"""A follower's side in ComfyUI: load the model as ComfyUI would here, then serve forwards."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch.distributed import PrefixStore

from comfyfleet.comfy.exact_vae import BY_ROWS, Method
from comfyfleet.comfy.options import completed
from comfyfleet.errors import InputError
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.gang import Follower, Forward
from comfyfleet.parallel.roster import Ticket, announce, is_over, store_of, take_place

#: Longer than a leader waits for its last follower.
_ROSTER_TIMEOUT = timedelta(minutes=15)

#: The world in which this process follows; None while it does not.
_world: World | None = None


def state() -> str:
    """Where this follower is; from any thread."""
    world = _world
    return "follows nobody" if world is None else world.state()


def follow(patcher: Any, ticket: Ticket, folder: Path) -> int:
    """Serve the forwards of this ModelPatcher's model to a leader; the number of forwards.

    ``folder`` is the fleet's own. Returns 0 if the leader goes without this follower. Raises
    LinkLost.
    """
    _load(patcher, ticket.shape)
    world = _join(ticket, folder, patcher.load_device)
    if world is None:
        return 0
    model, options = patcher.model.diffusion_model, patcher.model_options["transformer_options"]
    patcher.pre_run()  # as a sampler does: nodes may have asked to be called
    try:
        return _serve(world, Follower(world, model, partial(completed, own=options)))
    finally:
        patcher.cleanup()


def follow_vae(vae: Any, method: Method, ticket: Ticket, folder: Path) -> int:
    """Serve forwards of this VAE's model; see ``follow``."""
    needed = {"decode": vae.memory_used_decode, "encode": vae.memory_used_encode}[method]
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=needed(ticket.shape, vae.vae_dtype)
    )
    world = _join(ticket, folder, vae.device)
    if world is None:
        return 0
    model, prepare = vae.first_stage_model, partial(_check_dtype, vae.vae_dtype)
    return _serve(world, Follower(world, model, prepare, BY_ROWS))


def _join(ticket: Ticket, folder: Path, device: torch.device) -> World | None:
    """The world of the gang; None if the leader goes without this follower."""
    if is_over(folder, ticket.gang):
        return None
    store = store_of(folder, ticket.gang)
    store.set_timeout(_ROSTER_TIMEOUT)
    announce(store, ticket.name)
    place = take_place(store, ticket.name, device)
    return None if place is None else World(PrefixStore("world", store), place)


def _serve(world: World, follower: Follower) -> int:
    global _world
    _world = world
    try:
        return follower.serve()
    finally:
        _world = None


def _check_dtype(own: torch.dtype, forward: Forward, call: Call) -> Call:
    """Strips of other precision would not fit together."""
    given = call.args[0].dtype
    if given != own:
        raise InputError(f"its VAE computes in {own}, that of the leader in {given}.")
    return call


def _load(patcher: Any, shape: tuple[int, ...]) -> None:
    """Bring the weights to the device and leave room for a forward of this latent."""
    needed = patcher.memory_required([2 * shape[0], *shape[1:]])
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)
