"""The same prompt with other seeds and values: once per share of a run, or on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from comfyfleet.errors import InputError, Problem, WorkflowError
from comfyfleet.graph.border import shipped_node
from comfyfleet.graph.prompt import (
    Link,
    Prompt,
    as_link,
    downstream,
    find_problems,
    problem_at,
    relink,
    with_input,
)
from comfyfleet.graph.slice import upstream
from comfyfleet.graph.values import value_lines

Node = Mapping[str, Any]
#: Returns a node as a share sees it; InputError if the node does not say.
Varier = Callable[[Node, int], Node]

NUM_SEEDS = 2**64
SEED_CLASSES = frozenset({"DistributedSeed", "FleetSeed"})
SEED_INPUTS = ("seed", "noise_seed")
#: Internal node: adds its literal ``offset`` to a ``seed`` that is known only at run time.
SEED_OFFSET_CLASS = "FleetSeedOffset"
#: Stands for an output of a Fleet Split, and names each share's value; it runs nowhere itself.
SLICES_CLASS = "FleetSlices"

_VALUES_FORM = 'write {"1": "value of share 1", "2": "value of share 2"}'


def vary(prompt: Prompt, share: int) -> dict[str, Node]:
    """Return the prompt as the given share of a run sees it (share 0 = as written)."""
    varied: dict[str, Node] = {}
    problems: list[Problem] = []
    for node_id, node in prompt.items():
        vary_node = VARIERS.get(node.get("class_type", ""))
        try:
            varied[node_id] = vary_node(node, share) if vary_node else node
        except InputError as error:
            problems.append(problem_at(prompt, node_id, str(error)))
    if problems:
        raise WorkflowError(problems)
    return varied


def varying_nodes(prompt: Prompt, targets: Iterable[str] | None = None) -> set[str]:
    """Return the nodes whose result differs between shares, among those that targets need."""
    scope = prompt if targets is None else upstream(prompt, targets)
    return downstream(scope, _of_class(scope, VARIERS))


def clone_share(
    prompt: Prompt, target: Link, share: int, prefix: str
) -> tuple[dict[str, Node], Link]:
    """Return what a share must compute anew to get the value of a link, and its new link.

    The varying nodes upstream of the link are copied, varied and renamed with the prefix.
    Their links to nodes that do not vary stay, so those are computed once for all shares.
    Returns no nodes, and the link itself, if nothing upstream varies.
    """
    source, slot = target
    moving = varying_nodes(prompt, [source])
    if not moving:
        return {}, target
    new_ids = {node_id: prefix + node_id for node_id in prompt if node_id in moving}
    varied = vary({node_id: prompt[node_id] for node_id in new_ids}, share)
    clones: dict[str, Node] = {
        new_ids[node_id]: relink(node, new_ids) for node_id, node in varied.items()
    }
    return clones, (new_ids[source], slot)


def find_seeds(prompt: Prompt) -> list[tuple[str, str]]:
    """Return (node id, input) of the seeds that make a whole prompt another one.

    Seed nodes decide alone where there are any; else each literal seed of a node counts.
    """
    chosen = _of_class(prompt, SEED_CLASSES)
    if chosen:
        return [(node_id, "seed") for node_id in chosen]
    return [
        (node_id, name)
        for node_id, node in prompt.items()
        for name in SEED_INPUTS
        if type(node.get("inputs", {}).get(name)) is int
    ]


def vary_seeds(prompt: Prompt, offset: int, base: int | None = None) -> dict[str, Node]:
    """Return the prompt with every seed of find_seeds set to (base or itself) + offset."""
    varied: dict[str, Node] = dict(prompt)
    for node_id, name in find_seeds(prompt):
        node = varied[node_id]
        if base is not None:
            varied[node_id] = with_input(node, name, (base + offset) % NUM_SEEDS)
            continue
        try:
            varied[node_id] = _offset_seed(node, name, offset)
        except InputError as error:
            raise WorkflowError([problem_at(prompt, node_id, str(error))]) from None
    return varied


def repeat(prompt: Prompt, index: int, base: int | None = None) -> dict[str, Node]:
    """Return the prompt as run number ``index`` of a batch of whole prompts.

    Varying nodes see the number as their share. Without a seed node, each literal seed is raised
    by it as well. ``base`` replaces the seeds of run 0.
    """
    based = prompt if base is None else vary_seeds(prompt, 0, base)
    varied = vary(based, index)
    return varied if _of_class(prompt, SEED_CLASSES) else vary_seeds(varied, index)


def set_input(prompt: Prompt, assignment: str) -> dict[str, Node]:
    """Return the prompt with one input set as "NODE.INPUT=VALUE" says.

    VALUE is JSON, and text where it is not JSON. A link can be replaced by a value, and a
    value by a link, written ["NODE", 0].
    """
    path, equals, text = assignment.partition("=")
    if not equals or "." not in path:
        raise InputError(
            f"{assignment!r} sets no input; write NODE.INPUT=VALUE, for example 3.seed=42, "
            "where NODE is a node's id in the workflow"
        )
    node_id, name = _find_input(prompt, path.strip())
    changed = {**prompt, node_id: with_input(prompt[node_id], name, _parse_value(text))}
    problems = find_problems(changed) if as_link(changed[node_id]["inputs"][name]) else []
    if problems:
        raise WorkflowError(problems)
    return changed


def _of_class(prompt: Prompt, classes: Container[str]) -> list[str]:
    return [node_id for node_id, node in prompt.items() if node.get("class_type") in classes]


def _vary_seed(node: Node, share: int) -> Node:
    return _offset_seed(node, "seed", share) if share else node


def _vary_fleet_value(node: Node, share: int) -> Node:
    values = value_lines(_text_input(node, "values"))
    return with_input(node, "values", values[share % len(values)])


def _vary_distributed_value(node: Node, share: int) -> Node:
    text = _text_input(node, "worker_values").strip() or "{}"
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"input 'worker_values' is not JSON: {error}; {_VALUES_FORM}") from None
    if not isinstance(values, dict):
        raise InputError(f"input 'worker_values' is {text}, not an object; {_VALUES_FORM}")
    value = values.get(str(share))
    if share == 0 or value in (None, ""):
        return node
    return with_input(node, "default_value", _as_text(value))


def _vary_slices(node: Node, share: int) -> Node:
    digests = value_lines(_text_input(node, "digests"))
    return shipped_node(digests[share])


#: What varies between shares. A further class is one row.
VARIERS: Mapping[str, Varier] = {
    "DistributedSeed": _vary_seed,
    "DistributedValue": _vary_distributed_value,
    "FleetSeed": _vary_seed,
    SLICES_CLASS: _vary_slices,
    "FleetValue": _vary_fleet_value,
}


def _offset_seed(node: Node, name: str, offset: int) -> Node:
    seed = node.get("inputs", {}).get(name)
    if as_link(seed):
        inputs = {"seed": seed, "offset": offset}
        return {**node, "class_type": SEED_OFFSET_CLASS, "inputs": inputs}
    try:
        return with_input(node, name, (int(seed) + offset) % NUM_SEEDS)
    except (TypeError, ValueError, OverflowError):
        message = f"input {name!r} is {json.dumps(seed)}; write a whole number, or link one"
        raise InputError(message) from None


def _text_input(node: Node, name: str) -> str:
    value = node.get("inputs", {}).get(name)
    if value is None:
        raise InputError(f"input {name!r} is missing; export the workflow again")
    if as_link(value):
        raise InputError(
            f"input {name!r} is linked, but must be known before anything runs; "
            "type it into the node"
        )
    return _as_text(value)


def _as_text(value: object) -> str:
    """Return a literal as one types it into a text input."""
    return value if isinstance(value, str) else json.dumps(value)


def _find_input(prompt: Prompt, path: str) -> tuple[str, str]:
    """Split NODE.INPUT; both may contain dots, and the longest node id that exists wins."""
    dots = [position for position, letter in enumerate(path) if letter == "."]
    for dot in reversed(dots):
        node_id, name = path[:dot], path[dot + 1 :]
        if node_id in prompt:
            _require_input(prompt, node_id, name)
            return node_id, name
    nodes = ", ".join(f"{node_id} ({node.get('class_type')})" for node_id, node in prompt.items())
    raise InputError(f"no node of the workflow fits {path!r}; choose among {nodes}")


def _require_input(prompt: Prompt, node_id: str, name: str) -> None:
    """Refuse an input that no node of the class has here: ComfyUI would ignore it silently."""
    class_type = prompt[node_id].get("class_type")
    known = {
        known_name
        for node in prompt.values()
        if node.get("class_type") == class_type
        for known_name in node.get("inputs", {})
    }
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise InputError(
            f"node {node_id} ({class_type}) has no input {name!r}; its inputs are: {names}"
        )


def _parse_value(text: str) -> Any:
    try:
        # Python reads NaN and Infinity as numbers, though they are no JSON: keep the words.
        return json.loads(text, parse_constant=str)
    except ValueError:  # not JSON, or more digits than Python converts
        return text
