"""A ComfyUI prompt (API format) as plain data: read it, check it, follow its links."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from comfyfleet.errors import Problem, WorkflowError

#: Node id -> {"class_type": str, "inputs": {...}}. Unknown keys of a node are kept.
Prompt = Mapping[str, Mapping[str, Any]]
#: The node that a value comes from, and the number of that node's output.
Link = tuple[str, int]

HOW_TO_EXPORT = (
    "In ComfyUI choose File > Export (API); in older front ends Workflow > Export (API), "
    "or enable dev mode in the settings and choose Save (API Format)"
)


def parse_prompt(text: str, source: str) -> dict[str, dict[str, Any]]:
    """Read a prompt from JSON, as exported or as posted to /prompt; ``source`` is its name.

    Raises WorkflowError with everything that is wrong with it.
    """
    prompt = _unwrap(_decode(text, source), source)
    problems = find_problems(prompt)
    if problems:
        raise WorkflowError(problems)
    return prompt


def as_link(value: object) -> Link | None:
    """Return the link that an input's value is, or None if it is a literal.

    As in ComfyUI, any list of a string and a number is one.
    """
    if not isinstance(value, list) or len(value) != 2:
        return None
    node_id, slot = value
    if not isinstance(node_id, str) or not isinstance(slot, (int, float)):
        return None
    if isinstance(slot, float) and not slot.is_integer():
        return None
    return node_id, int(slot)


def links_of(node: Mapping[str, Any]) -> dict[str, Link]:
    """Return the links among a node's inputs, by input name."""
    links = ((name, as_link(value)) for name, value in node.get("inputs", {}).items())
    return {name: link for name, link in links if link is not None}


def used_outputs(prompt: Prompt, node_id: str) -> set[int]:
    """Return the numbers of a node's outputs that some node takes."""
    links = (link for node in prompt.values() for link in links_of(node).values())
    return {slot for source, slot in links if source == node_id}


def with_input(node: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """Return a copy of a node with one input set."""
    return {**node, "inputs": {**node.get("inputs", {}), name: value}}


def relink(node: Mapping[str, Any], new_ids: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a node whose links follow renamed nodes; other links stay."""
    moved = {
        name: [new_ids[source], slot]
        for name, (source, slot) in links_of(node).items()
        if source in new_ids
    }
    return {**node, "inputs": {**node.get("inputs", {}), **moved}}


def downstream(prompt: Prompt, node_ids: Iterable[str]) -> set[str]:
    """Return the given nodes and every node that depends on one of them.

    A given node that does not exist raises WorkflowError.
    """
    found = set(node_ids)
    require_nodes(prompt, found)
    consumers: dict[str, list[str]] = {node_id: [] for node_id in prompt}
    for node_id, sources in _sources(prompt).items():
        for source in sources:
            consumers[source].append(node_id)
    waiting = list(found)
    while waiting:
        new = set(consumers[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def in_order(prompt: Prompt) -> list[str]:
    """Return the node ids with every node after those that it links to."""
    try:
        return list(TopologicalSorter(_sources(prompt)).static_order())
    except CycleError:
        raise WorkflowError(_cycle_problems(prompt)) from None


def problem_at(prompt: Mapping[str, Any], node_id: str, message: str) -> Problem:
    """Tie a message to a node of a prompt; its class is left out where it has none."""
    node = prompt.get(node_id)
    class_type = node.get("class_type") if isinstance(node, Mapping) else None
    return Problem(
        message=message,
        node_id=node_id,
        class_type=class_type if isinstance(class_type, str) else None,
    )


def require_nodes(prompt: Prompt, node_ids: Iterable[str]) -> None:
    """Raise WorkflowError that names the given nodes which do not exist."""
    message = f"is not in the workflow; choose among {', '.join(prompt) or 'no nodes'}"
    missing = [node_id for node_id in node_ids if node_id not in prompt]
    if missing:
        raise WorkflowError([Problem(message=message, node_id=node_id) for node_id in missing])


def find_problems(prompt: Mapping[str, Any]) -> list[Problem]:
    """Return all that makes a decoded object no runnable prompt: its nodes, links and cycles."""
    if not prompt:
        return [Problem(message="the workflow is empty: add at least one node and export it again")]
    problems = [
        problem_at(prompt, node_id, message)
        for node_id, node in prompt.items()
        for message in (*_shape_messages(node), *_link_messages(prompt, node))
    ]
    well_formed = {node_id: node for node_id, node in prompt.items() if _has_inputs(node)}
    return problems + _cycle_problems(well_formed)


def _decode(text: str, source: str) -> object:
    try:
        # Editors on Windows put a byte order mark in front.
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _not_a_prompt(source, f"is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _not_a_prompt(source, "is JSON that is nested too deeply") from None


def _unwrap(data: object, source: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _not_a_prompt(source, f"holds a JSON {_json_type(data)}, not an object of nodes")
    if isinstance(data.get("nodes"), list) and isinstance(data.get("links"), list):
        raise _not_a_prompt(source, "is a workflow in the format of the editor, not of the API")
    inner = data.get("prompt")
    if isinstance(inner, dict) and "class_type" not in inner:
        return inner
    return data


def _not_a_prompt(source: str, message: str) -> WorkflowError:
    return WorkflowError([Problem(message=f"{source} {message}. {HOW_TO_EXPORT}")])


def _json_type(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _has_inputs(node: object) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)


def _shape_messages(node: object) -> Iterator[str]:
    if not isinstance(node, Mapping):
        yield (
            f"is a {_json_type(node)}, not an object with class_type and inputs. {HOW_TO_EXPORT}"
        )
        return
    class_type = node.get("class_type")
    if not isinstance(class_type, str) or not class_type:
        yield (
            f"class_type is {json.dumps(class_type)}; it must name a node class such as KSampler. "
            "If the workflow was exported without that node's pack, install the pack, export again"
        )
    if "inputs" not in node:
        yield "has no inputs; write an empty object ({}) if it needs none"
    elif not _has_inputs(node):
        yield f"inputs is a {_json_type(node['inputs'])}, not an object of names and values"


def _link_messages(prompt: Mapping[str, Any], node: Any) -> Iterator[str]:
    if not _has_inputs(node):
        return
    for name, (source, slot) in links_of(node).items():
        if source not in prompt:
            yield (
                f"input {name!r} links to node {source}, which is not in the workflow; "
                "add that node, or link the input to another one"
            )
        if slot < 0:
            yield (
                f"input {name!r} links to output {slot} of node {source}; "
                "outputs are counted from 0, so choose 0 or more"
            )


def _sources(prompt: Prompt) -> dict[str, list[str]]:
    """Return the nodes that each node links to, as far as they exist."""
    return {
        node_id: [source for source, _ in links_of(node).values() if source in prompt]
        for node_id, node in prompt.items()
    }


def _cycle_problems(prompt: Prompt) -> list[Problem]:
    """Return one problem for each cycle; cycles that share a node count as one."""
    problems = []
    sources = _sources(prompt)
    while cycle := _find_cycle(sources):
        path = " -> ".join([*cycle, cycle[0]])
        message = (
            f"is part of a cycle ({path}), so none of its nodes can run first; "
            "remove one of these links"
        )
        problems.append(problem_at(prompt, cycle[0], message))
        sources = {
            node_id: [source for source in found if source not in cycle]
            for node_id, found in sources.items()
            if node_id not in cycle
        }
    return problems


def _find_cycle(sources: Mapping[str, list[str]]) -> list[str]:
    """Return the nodes of one cycle, each before the one that uses it; empty without one."""
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle[:-1]
    return []
