"""What the Parallel Model node asks the fleet for, and what it tells its user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import server

from comfyfleet.comfy import prompts
from comfyfleet.comfy.sampling import Account
from comfyfleet.errors import CannotSplit, InputError
from comfyfleet.extension.master import master
from comfyfleet.fleet.gangs import Gang, GangRequest
from comfyfleet.graph import Link, Prompt, as_link, cut, new_id
from comfyfleet.parallel.plans import find_plan
from comfyfleet.parallel.roster import Ticket
from comfyfleet.parallel.strategy import AXES, Wish

#: Our nodes with gangs, and their inputs whose models a worker keeps while it follows with others.
GANG_NODES = {"FleetParallelModel": "model", "FleetVAEDecode": "vae", "FleetVAEEncode": "vae"}
#: As many other models as a follow node has inputs for.
MAX_KEPT = 8

#: Node id -> what its samplings found out.
_accounts: dict[str, Account] = {}


def account_of(node_id: str) -> Account:
    """The account of a node, kept from prompt to prompt."""

    def tell(text: str) -> None:
        server.PromptServer.instance.send_progress_text(text, node_id)

    return _accounts.setdefault(node_id, Account(tell))


def read_weights(devices: str, weights: str, workers: Sequence[str]) -> dict[str, float]:
    """Weight by worker, the leader's under "". Raises InputError.

    ``devices`` is "all" or a list of workers; ``weights`` is empty or one number for the leader
    and one for each of these workers, in order.
    """
    names = [name.strip() for name in devices.split(",") if name.strip()]
    chosen = list(workers) if names in ([], ["all"]) else names
    if unknown := [name for name in chosen if name not in workers]:
        raise InputError(
            f"devices: no worker {', '.join(map(repr, unknown))}; there is "
            f"{', '.join(workers) or 'none'}. Give all, or a list of these."
        )
    if len(set(chosen)) < len(chosen):
        raise InputError(f"devices names a worker twice: {devices!r}; name each once.")
    numbers = _numbers(weights) if weights.strip() else [1.0] * (1 + len(chosen))
    if len(numbers) != 1 + len(chosen):
        raise InputError(
            f"weights has {len(numbers)} numbers; give {1 + len(chosen)}: this device's, then one "
            f"for each of {', '.join(chosen) or 'no workers'}. Empty: all equal."
        )
    return dict(zip(["", *chosen], numbers, strict=True))


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"weights is {text!r}; give numbers such as 1, 0.5.") from None
    if bad := [number for number in found if not 0 < number < float("inf")]:
        raise InputError(f"weights has {bad[0]}; a weight is a number above 0.")
    return found


class Opener:
    """A latent's shape -> the gang for one sampling with the model of a node."""

    def __init__(
        self, prompt_of: Callable[[Ticket], Prompt], weights: Mapping[str, float], account: Account
    ) -> None:
        self._prompt_of = prompt_of
        self._weights = dict(weights)
        self._account = account
        self._last: Gang | None = None

    def __call__(self, shape: Sequence[int]) -> Gang:
        self._leave_out_exhausted()
        request = GangRequest(
            prompt_of=self._prompt_of,
            shape=tuple(shape),
            device=comfy.model_management.get_torch_device(),
            weights=self._weights,
            check=prompts.raise_if_interrupted,
        )
        self._last = master().open_gang(request)
        return self._last

    def _leave_out_exhausted(self) -> None:
        for worker_id in self._last.exhausted if self._last is not None else ():
            del self._weights[worker_id]
            self._account.warn(
                f"{worker_id} ran out of memory with this model, and is left out until the node's "
                f"inputs change."
            )


def follow_prompt(node_id: str, prompt: Mapping[str, Any]) -> Callable[[Ticket], Prompt]:
    """A ticket -> what a follower runs to get the model of this node and to serve it."""
    link = as_link(prompt[node_id]["inputs"]["model"])
    assert link is not None
    return follow_by("FleetFollow", {"model": list(link)}, node_id, prompt)


def follow_by(
    class_type: str, inputs: Mapping[str, Any], node_id: str, prompt: Mapping[str, Any]
) -> Callable[[Ticket], Prompt]:
    """A ticket -> the graph upstream of a follow node with these inputs."""
    kept = _other_models(prompt, node_id)
    whole = {**inputs, **{f"kept_{i}": list(other) for i, other in enumerate(kept)}}

    def prompt_of(ticket: Ticket) -> Prompt:
        sink = {"class_type": class_type, "inputs": {**whole, "ticket": ticket.to_json()}}
        return cut(prompt, sink, new_id(prompt, "follow"))

    return prompt_of


def _other_models(prompt: Mapping[str, Any], node_id: str) -> list[Link]:
    """What the other nodes with gangs use: ComfyUI forgets what a prompt does not name."""
    others = [node for key, node in prompt.items() if key != node_id]
    found = [
        as_link(node["inputs"].get(GANG_NODES[node["class_type"]]))
        for node in others
        if node["class_type"] in GANG_NODES
    ]
    return list(dict.fromkeys(link for link in found if link is not None))[:MAX_KEPT]


def describe(wish: Wish, weights: Mapping[str, float], patcher: Any, account: Account) -> str:
    """The node's report: what is split how, where, what to expect, what was measured."""
    try:
        tokens = f"tokens by the plan {find_plan(patcher.model.diffusion_model).family!r}"
    except CannotSplit as error:
        tokens = f"no tokens ({error})"
    what = {"cfg": "conditionings", "sequence": tokens, "batch": "pictures of a batch"}
    split = ", ".join(what[axis] for axis in AXES[wish.strategy])
    devices = ", ".join(["this device", *(name for name in weights if name)])
    shares = sum(weights.values()) / max(weights.values())
    lines = [
        f"Strategy {wish.strategy}: splits {split}.",
        f"Devices: {devices}. Expected: up to {shares:.1f} times faster, if there is as much to "
        f"split.",
    ]
    return "\n".join([*lines, account.last] if account.last else lines)
