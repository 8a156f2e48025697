"""Branches of a prompt: what only one value needs, and which ones could run at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comfyfleet.graph.border import stand_in
from comfyfleet.graph.prompt import Link, Prompt, links_of
from comfyfleet.graph.slice import upstream
from comfyfleet.graph.split import COLLECTOR_CLASSES, SPLIT_CLASS

BRANCH_CLASS = "FleetBranch"
#: Nodes that decide themselves what runs elsewhere.
DISPATCHING = COLLECTOR_CLASSES | {BRANCH_CLASS, SPLIT_CLASS, "FleetParallelModel"}

#: Given a node's class, answers whether it shows results: a prompt runs for these.
IsOutput = Callable[[str], bool]


def exclusive(prompt: Prompt, node_id: str, is_output: IsOutput) -> set[str]:
    """Return the node and all upstream of it that nothing else in the prompt needs.

    Empty for a node that is an output, or without which an output node upstream would be missed.
    """
    ends = {each for each, node in prompt.items() if is_output(node["class_type"])}
    used = {source for node in prompt.values() for source, _ in links_of(node).values()}
    # What an expanded node gives back is used by nothing that the prompt shows.
    ends |= set(prompt) - used
    without = {each: node for each, node in prompt.items() if each != node_id}
    return set(upstream(prompt, [node_id])) - set(upstream(without, ends - {node_id}))


def find_branches(
    prompt: Prompt, is_output: IsOutput, is_heavy: IsOutput, travels: Callable[[Link], bool]
) -> list[Link]:
    """Return values that could be computed at the same time, each by heavy nodes of its own.

    Each is the only value of its node that is used, and can travel. None of them needs another.
    Prompts that say themselves what runs elsewhere have none.
    """
    if any(node["class_type"] in DISPATCHING for node in prompt.values()):
        return []
    heavy = {node_id for node_id, node in prompt.items() if is_heavy(node["class_type"])}
    own = {
        link: nodes
        for link in _only_outputs(prompt)
        if not is_output(prompt[link[0]]["class_type"])
        and travels(link)
        and (nodes := exclusive(prompt, link[0], is_output)) & heavy
    }
    apart = [link for link in own if not _holds_several(own, link) and _is_last(own, link)]
    needed = {link: set(upstream(prompt, [link[0]])) for link in apart}
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


def _only_outputs(prompt: Prompt) -> list[Link]:
    """The values of nodes of which one value is used."""
    used: dict[str, set[int]] = {}
    for node in prompt.values():
        for source, slot in links_of(node).values():
            used.setdefault(source, set()).add(slot)
    return [
        (node_id, next(iter(used[node_id])))
        for node_id in prompt
        if len(used.get(node_id, ())) == 1
    ]


def _holds_several(own: Mapping[Link, set[str]], link: Link) -> bool:
    """True if branches inside this one could run at the same time."""
    inside = [nodes for other, nodes in own.items() if other != link and other[0] in own[link]]
    return any(not a & b for a in inside for b in inside)


def _is_last(own: Mapping[Link, set[str]], link: Link) -> bool:
    """True if the branch is no part of a longer one, but for those that hold several."""
    return not any(
        other != link and link[0] in nodes and not _holds_several(own, other)
        for other, nodes in own.items()
    )
