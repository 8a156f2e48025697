"""Cut pieces out of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfyfleet.graph.prompt import Prompt, links_of, require_nodes


def upstream(prompt: Prompt, targets: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the targets and all that they depend on, as a prompt of its own.

    Links to nodes that do not exist stay as they are. A target that does not exist raises
    WorkflowError.
    """
    waiting = list(targets)
    require_nodes(prompt, waiting)
    found: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id in prompt and node_id not in found:
            found.add(node_id)
            waiting += (source for source, _ in links_of(prompt[node_id]).values())
    return {node_id: node for node_id, node in prompt.items() if node_id in found}


def cut(prompt: Prompt, sink: Mapping[str, Any], sink_id: str) -> dict[str, Mapping[str, Any]]:
    """Return a new last node and everything upstream of the links among its inputs.

    This ends a unit's graph in a node that returns the results. Take ``sink_id`` from
    ``new_id``: an id that is taken raises ValueError.
    """
    if sink_id in prompt:
        raise ValueError(f"sink_id {sink_id!r} is a node of the prompt; take one from new_id()")
    piece = upstream(prompt, [source for source, _ in links_of(sink).values()])
    return {**piece, sink_id: sink}


def new_id(prompt: Prompt, stem: str) -> str:
    """Return a node id that the prompt does not use: the stem, numbered if need be."""
    candidate, number = stem, 1
    while candidate in prompt:
        number += 1
        candidate = f"{stem}_{number}"
    return candidate
