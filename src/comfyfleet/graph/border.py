"""Where a piece of a prompt is cut so that what lies behind the cut is computed elsewhere, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comfyfleet.graph.prompt import Link, Prompt, as_link, links_of
from comfyfleet.graph.slice import new_id

#: Says whether a link's value can leave the process that computes it.
Travels = Callable[[Link], bool]

#: Internal node: gives the value that was shipped under its literal ``digest``.
SHIPPED_CLASS = "FleetShipped"

#: Types whose values are tensors and plain data. A VIDEO would lose its encoding; the others,
#: MODEL for one, live in one process.
_SCALAR_TYPES = frozenset(["BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"])
_TRAVELLING_TYPES = _SCALAR_TYPES | {"AUDIO", "CONDITIONING", "IMAGE", "LATENT", "MASK", "SIGMAS"}


def border(prompt: Prompt, moving: Iterable[str], travels: Travels) -> list[Link]:
    """Return the links whose values the moving nodes need from the others, in the prompt's order.

    Where a value cannot travel its node moves along, and the values that this one needs count. A
    node that moves along gives all of its values itself: none of them is returned.
    """
    moves = set(moving)
    found: set[Link] = set()
    waiting = list(moves)
    while waiting:
        for link in links_of(prompt[waiting.pop()]).values():
            source = link[0]
            if source in moves or source not in prompt:
                continue
            if travels(link):
                found.add(link)
            else:
                moves.add(source)
                waiting.append(source)
    order = {node_id: place for place, node_id in enumerate(prompt)}
    left = (link for link in found if link[0] not in moves)
    return sorted(left, key=lambda link: (order[link[0]], link[1]))


def can_travel(type_name: object) -> bool:
    """Return whether values of a declared type can travel; lists of choices, of old packs, not."""
    return isinstance(type_name, str) and _types(type_name) <= _TRAVELLING_TYPES


def is_worth_shipping(node: Mapping[str, Any], type_name: object) -> bool:
    """Return whether a value of this declared type can travel and took work to make.

    A node without links that gives a number or a text is a constant, and what is made of numbers
    alone (an empty latent, a mask of one value) is made again faster than sent.
    """
    if not can_travel(type_name):
        return False
    if links_of(node):
        return True
    names_something = any(isinstance(value, str) for value in node.get("inputs", {}).values())
    return names_something and not _types(str(type_name)) <= _SCALAR_TYPES


def _types(type_name: str) -> set[str]:
    return {each.strip() for each in type_name.split(",")}


def stand_in(
    prompt: Prompt, nodes: Mapping[Link, Mapping[str, Any]], stem: str = "shipped"
) -> dict[str, Any]:
    """Return the prompt in which new nodes, by their first output, stand for these links."""
    ids = {link: new_id(prompt, f"{stem}.{link[0]}.{link[1]}") for link in nodes}
    kept = {node_id: _relinked(node, ids) for node_id, node in prompt.items()}
    return {**kept, **{ids[link]: node for link, node in nodes.items()}}


def shipped_node(digest: str) -> dict[str, Any]:
    """Return the node that gives a shipped value."""
    return {"class_type": SHIPPED_CLASS, "inputs": {"digest": digest}}


def _relinked(node: Mapping[str, Any], ids: Mapping[Link, str]) -> Mapping[str, Any]:
    inputs = node.get("inputs", {})
    links = ((name, as_link(value)) for name, value in inputs.items())
    moved = {name: [ids[link], 0] for name, link in links if link is not None and link in ids}
    return {**node, "inputs": {**inputs, **moved}} if moved else node
