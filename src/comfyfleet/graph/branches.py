"""Branches of a prompt: what only one value needs, and which ones could run at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from comfyfleet.graph.border import stand_in
from comfyfleet.graph.prompt import Link, Prompt, in_order, links_of
from comfyfleet.graph.slice import upstream
from comfyfleet.graph.split import COLLECTOR_CLASSES, SPLIT_CLASS

BRANCH_CLASS = "FleetBranch"
#: Nodes that decide themselves what runs elsewhere.
DISPATCHING = COLLECTOR_CLASSES | {
    BRANCH_CLASS,
    SPLIT_CLASS,
    "FleetModelUpscale",
    "FleetModelUpscaleVideo",
    "FleetParallelModel",
    "FleetUpscale",
    "FleetUpscaleVideo",
    "FleetVAEDecode",
    "FleetVAEEncode",
    "UltimateSDUpscaleDistributed",
}

#: Stands behind all ends; no node has this id.
_ROOT = ""

#: Given a node's class, answers whether it shows results: a prompt runs for these.
IsOutput = Callable[[str], bool]


def exclusive(prompt: Prompt, node_id: str, is_output: IsOutput) -> set[str]:
    """Return the node and all upstream of it that nothing else in the prompt needs."""
    without = {each: node for each, node in prompt.items() if each != node_id}
    ends = _ends(prompt, is_output) - {node_id}
    return set(upstream(prompt, [node_id])) - set(upstream(without, ends))


def find_branches(
    prompt: Prompt, is_output: IsOutput, is_heavy: IsOutput, travels: Callable[[Link], bool]
) -> list[Link]:
    """Return values that could be computed at the same time, each by heavy nodes of its own.

    Each is the only value of its node that is used, and can travel. None of them needs another.
    Prompts that say themselves what runs elsewhere have none.
    """
    if any(node["class_type"] in DISPATCHING for node in prompt.values()):
        return []
    apart = _outermost(prompt, _candidates(prompt, is_output, travels), is_output, is_heavy)
    needed = {link: upstream(prompt, [link[0]]) for link in apart}
    return [
        link
        for link in apart
        if not any(link[0] in needed[other] for other in apart if other != link)
    ]


def with_branches(prompt: Prompt, links: Iterable[Link]) -> dict[str, Any]:
    """Return the prompt with a Fleet Branch behind each of these values; other nodes keep ids."""
    branches = {link: _branch_node(link) for link in links}
    return stand_in(prompt, branches, "branch")


def _branch_node(link: Link) -> dict[str, Any]:
    return {"class_type": BRANCH_CLASS, "inputs": {"value": list(link)}}


def _ends(prompt: Prompt, is_output: IsOutput) -> set[str]:
    """The nodes that a prompt runs for; what an expanded node gives back has no consumer either."""
    used = {source for node in prompt.values() for source, _ in links_of(node).values()}
    return {each for each, node in prompt.items() if is_output(node["class_type"])} | (
        set(prompt) - used
    )


def _candidates(
    prompt: Prompt, is_output: IsOutput, travels: Callable[[Link], bool]
) -> dict[str, Link]:
    """The values that can travel, of nodes of which one value is used and nothing is shown."""
    used: dict[str, set[int]] = {}
    for node in prompt.values():
        for source, slot in links_of(node).values():
            used.setdefault(source, set()).add(slot)
    links = {source: (source, min(slots)) for source, slots in used.items() if len(slots) == 1}
    return {
        node_id: links[node_id]
        for node_id, node in prompt.items()
        if node_id in links and not is_output(node["class_type"]) and travels(links[node_id])
    }


def _outermost(
    prompt: Prompt, candidates: Mapping[str, Link], is_output: IsOutput, is_heavy: IsOutput
) -> list[Link]:
    """The candidates with heavy nodes of their own, as far down as no two of them are inside one.

    A node's own nodes are those below it in the tree of gates; sources come first in the order.
    """
    gates = _gates(prompt, is_output)
    inside: dict[str, list[str]] = {}
    is_heavy_below: dict[str, bool] = {}
    for node_id in in_order(prompt):
        heavy = is_heavy_below.get(node_id, False) or is_heavy(prompt[node_id]["class_type"])
        chosen = inside.get(node_id, [])
        if heavy and len(chosen) < 2 and node_id in candidates:
            chosen = [node_id]
        gate = gates[node_id]
        inside[gate] = inside.get(gate, []) + chosen
        is_heavy_below[gate] = is_heavy_below.get(gate, False) or heavy
    found = set(inside.get(_ROOT, ()))
    return [link for node_id, link in candidates.items() if node_id in found]


def _gates(prompt: Prompt, is_output: IsOutput) -> dict[str, str]:
    """Each node's gate: the nearest node through which all that needs it does (its dominator)."""
    consumers: dict[str, set[str]] = {node_id: set() for node_id in prompt}
    for node_id, node in prompt.items():
        for source, _ in links_of(node).values():
            consumers.get(source, set()).add(node_id)
    for node_id in _ends(prompt, is_output):
        consumers[node_id].add(_ROOT)
    gates: dict[str, str] = {}
    depth = {_ROOT: 0}
    for node_id in reversed(in_order(prompt)):
        gate = reduce(lambda a, b: _common(a, b, gates, depth), consumers[node_id])
        gates[node_id], depth[node_id] = gate, depth[gate] + 1
    return gates


def _common(a: str, b: str, gates: Mapping[str, str], depth: Mapping[str, int]) -> str:
    """The nearest gate of both."""
    while a != b:
        if depth[a] < depth[b]:
            a, b = b, a
        a = gates[a]
    return a
