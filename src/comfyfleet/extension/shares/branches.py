"""Branches of a prompt that run on workers: what they take along, and which ones are found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import nodes
import server

from comfyfleet.comfy.inventory import is_output
from comfyfleet.config import BRANCHES, is_worker
from comfyfleet.errors import InputError
from comfyfleet.extension.master import master
from comfyfleet.extension.owner import read_config
from comfyfleet.extension.shares.collection import Collection, Request
from comfyfleet.extension.shares.shipping import (
    Plan,
    declared_type,
    travels_in,
    with_return,
    with_shipped,
)
from comfyfleet.graph import (
    DISPATCHING,
    Link,
    border,
    can_travel,
    exclusive,
    find_branches,
    find_problems,
    with_branches,
)

logger = logging.getLogger(__name__)

Prompt = Mapping[str, Mapping[str, Any]]


def open_branch(node_id: str, link: Link, prompt: Prompt) -> Collection | None:
    """What is upstream of a Fleet Branch, to be computed elsewhere; None if it must be here.

    It is computed here inside a worker and without workers, if nothing is the branch's own, if its
    value may not be able to travel, and if it holds what decides itself what runs elsewhere.
    """
    if is_worker() or not master().has_workers or not _can_travel(prompt, link):
        return None
    own = exclusive(prompt, node_id, is_output) - {node_id}
    request = Request(node_id=node_id, inputs={"value": link}, shares=1, delegate=True)

    def planner(refused: set[Link]) -> Plan:
        return Plan(shared=tuple(border(prompt, own, travels_in(prompt, refused))))

    branch = Collection(request, prompt, planner)
    classes = _classes_elsewhere(branch)
    known = master().classes_elsewhere()
    if not own or classes & DISPATCHING or any(map(is_output, classes)) or not classes <= known:
        return None
    return branch


def _classes_elsewhere(branch: Collection) -> set[str]:
    """The classes of the user's nodes that a worker would run."""
    whole, sink_id = with_return(branch.prompt, branch.links)
    piece = with_shipped(whole, dict.fromkeys(branch.plan.links, ""), sink_id)
    return {node["class_type"] for node_id, node in piece.items() if node_id != sink_id}


def _can_travel(prompt: Prompt, link: Link) -> bool:
    return can_travel(declared_type(prompt, link))


def is_sampler(class_type: str) -> bool:
    """True for nodes that give a LATENT and are samplers by their name or what they take."""
    cls = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if cls is None or "LATENT" not in cls.RETURN_TYPES:
        return False
    declared = cls.INPUT_TYPES()
    inputs = {**declared.get("required", {}), **declared.get("optional", {})}
    takes = {each[0] for each in inputs.values() if isinstance(each[0], str)}
    return "Sampler" in class_type or bool(takes & {"NOISE", "SAMPLER"})


def install() -> None:
    """Find branches in what is queued from now on, if the owner wants it."""
    try:
        wanted = not is_worker() and read_config().value(BRANCHES)
    except InputError as error:
        logger.error("branches are not looked for: %s", error)
        return
    if wanted:
        server.PromptServer.instance.add_on_prompt_handler(mark_branches)


def mark_branches(request: dict[str, Any]) -> dict[str, Any]:
    """A request to /prompt with a Fleet Branch behind each branch but the first, which stays here.

    What is no prompt is left to ComfyUI, which says what is wrong with it.
    """
    prompt = request.get("prompt")
    if not isinstance(prompt, dict) or find_problems(prompt) or not _is_worth_while():
        return request
    found = find_branches(prompt, is_output, is_sampler, lambda link: _can_travel(prompt, link))
    away = found[1:] if master().computes else found
    return {**request, "prompt": with_branches(prompt, away)} if away else request


def _is_worth_while() -> bool:
    """Are branches the way to keep devices busy? In a shared queue whole prompts do so sooner.

    They need no values from here, and no master that waits for their ends: so only one that the
    master may begin at once is taken apart.
    """
    switch = master().switch
    if switch is None or not switch.on_soon:
        return master().has_workers
    others: int = server.PromptServer.instance.prompt_queue.get_tasks_remaining()
    return switch.master_computes and not others
