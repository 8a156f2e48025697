"""A picture decoded or encoded by all devices together, as by one: what the VAE nodes call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import server
from torch import Tensor

from comfyfleet.comfy import prompts
from comfyfleet.comfy.exact_vae import ExactVAE, Method, check_exact
from comfyfleet.config import is_worker
from comfyfleet.errors import CannotSplit
from comfyfleet.extension.gang.parallel import follow_by
from comfyfleet.extension.master import master
from comfyfleet.fleet.gangs import GangRequest
from comfyfleet.graph import Prompt, as_link
from comfyfleet.parallel.roster import Ticket

logger = logging.getLogger(__name__)


def decode(hidden: Any, vae: Any, samples: Tensor, vae_input: str = "vae") -> Tensor:
    """``vae.decode(samples)``: a latent [B, C, h, w] -> pictures [B, H, W, C].

    ``hidden`` is that of the running node, with unique_id and dynprompt; ``vae_input`` is the name
    of its input that links to the VAE. Where rows cannot be shared, ComfyUI's own decode is used
    and the user is told why.
    """
    return _run(hidden, vae, "decode", samples, tuple(samples.shape), vae_input)


def encode(hidden: Any, vae: Any, pixels: Tensor, vae_input: str = "vae") -> Tensor:
    """``vae.encode(pixels)``: pictures [B, H, W, 3] -> a latent [B, C, h, w]; see ``decode``."""
    shape = tuple(pixels.movedim(-1, 1).shape)
    return _run(hidden, vae, "encode", pixels, shape, vae_input)


def _run(
    hidden: Any, vae: Any, method: Method, value: Tensor, shape: tuple[int, ...], vae_input: str
) -> Tensor:
    """``shape``: of what the VAE's model gets, for the memory that it takes."""
    try:
        check_exact(vae, method)
        prompt_of = _follow_prompt(hidden, method, vae_input)
    except CannotSplit as error:
        _tell(hidden.unique_id, f"One device computes: {error}", logging.WARNING)
        alone: Tensor = getattr(vae, method)(value)
        return alone
    request = GangRequest(
        prompt_of=prompt_of,
        shape=shape,
        device=vae.device,
        weights=dict.fromkeys(["", *master().gang_names], 1.0),
        check=prompts.raise_if_interrupted,
    )
    tell = partial(_tell, hidden.unique_id)
    return ExactVAE(vae, master().open_gang(request), tell).run(method, value)


def _follow_prompt(hidden: Any, method: Method, vae_input: str) -> Callable[[Ticket], Prompt]:
    """A ticket -> what a follower runs to get the node's VAE and to serve it. Or CannotSplit."""
    if is_worker():
        raise CannotSplit("this is a worker, which has no others.")
    if not master().gang_names:
        raise CannotSplit("there is no worker on this machine.")
    prompt = prompts.plain_prompt(hidden.dynprompt)
    link = as_link(prompt[hidden.unique_id]["inputs"].get(vae_input))
    if link is None:
        raise CannotSplit(f"nothing is linked to {vae_input!r}, so workers cannot load it.")

    inputs = {"vae": list(link), "method": method}
    return follow_by("FleetFollowVAE", inputs, hidden.unique_id, prompt)


def _tell(node_id: str, text: str, level: int) -> None:
    logger.log(level, "Exact VAE: %s", text)
    server.PromptServer.instance.send_progress_text(text, node_id)
