"""A follower's side in ComfyUI: load the model as a sampler would, then serve forwards."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
from torch.distributed import PrefixStore

from comfyfleet.comfy.options import completed
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.gang import Follower
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
    if is_over(folder, ticket.gang):
        return 0
    store = store_of(folder, ticket.gang)
    store.set_timeout(_ROSTER_TIMEOUT)
    announce(store, ticket.name)
    place = take_place(store, ticket.name, patcher.load_device)
    if place is None:
        return 0
    model, options = patcher.model.diffusion_model, patcher.model_options["transformer_options"]
    global _world
    _world = World(PrefixStore("world", store), place)
    patcher.pre_run()  # as a sampler does: nodes may have asked to be called
    try:
        return Follower(_world, model, partial(completed, own=options)).serve()
    finally:
        _world = None
        patcher.cleanup()


def _load(patcher: Any, shape: tuple[int, ...]) -> None:
    """Bring the weights to the device and leave room for a forward of this latent."""
    needed = patcher.memory_required([2 * shape[0], *shape[1:]])
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)
