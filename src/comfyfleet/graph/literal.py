"""Our nodes of values as plain literals: a ComfyUI without this extension does not know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.errors import InputError
from comfyfleet.graph.prompt import Prompt, as_link, in_order
from comfyfleet.graph.values import convert, value_lines

NUM_SEEDS = 2**64


def with_literals(prompt: Prompt) -> dict[str, Mapping[str, Any]]:
    """Return the prompt without the nodes whose value is known from their inputs alone.

    Raises InputError for a value that is none.
    """
    known: dict[str, Any] = {}
    found: dict[str, Mapping[str, Any]] = {}
    for node_id in in_order(prompt):
        if node_id not in prompt:
            continue  # a link to nothing, which whoever validates the prompt will name
        node = _filled(prompt[node_id], known)
        fold = _FOLDS.get(node.get("class_type", ""))
        inputs = node.get("inputs", {})
        if fold is None or any(as_link(value) for value in inputs.values()):
            found[node_id] = node
        else:
            known[node_id] = fold(inputs)
    return {node_id: found[node_id] for node_id in prompt if node_id in found}


def _filled(node: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node with values in place of links to nodes that are known."""
    inputs = dict(node.get("inputs", {}))
    for name, value in inputs.items():
        link = as_link(value)
        if link is not None and link[0] in known:
            inputs[name] = known[link[0]]
    return {**node, "inputs": inputs}


def _seed(inputs: Mapping[str, Any]) -> int:
    try:
        return (int(inputs["seed"]) + int(inputs.get("offset", 0))) % NUM_SEEDS
    except (KeyError, TypeError, ValueError):
        raise InputError(f"seed {inputs.get('seed')!r}: give a whole number.") from None


def _value(inputs: Mapping[str, Any]) -> Any:
    return convert(value_lines(str(inputs.get("values", "")))[0], str(inputs.get("type", "")))


def _text(inputs: Mapping[str, Any]) -> str:
    return str(inputs.get("text", ""))


_FOLDS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "DistributedModelName": _text,
    "DistributedSeed": _seed,
    "FleetModelName": _text,
    "FleetSeed": _seed,
    "FleetSeedOffset": _seed,
    "FleetValue": _value,
}
