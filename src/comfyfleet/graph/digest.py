"""Digests of prompts: what is computed, not how the nodes are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.graph.files import is_weights_file, strings_in
from comfyfleet.graph.prompt import Prompt, in_order, links_of

#: Given a class and its inputs, answers whether such a node loads a model.
IsLoader = Callable[[str, Mapping[str, Any]], bool]

LOADER_WORDS = ("FleetDemoModel", "Loader")


def digest(prompt: Prompt) -> str:
    """Return a SHA-256 that only a change of classes, inputs or links changes.

    The ids of the nodes, their order, the order of keys and ``_meta`` do not count.
    """
    return _sha256(sorted(node_digests(prompt).values()))


def node_digests(prompt: Prompt) -> dict[str, str]:
    """Return for each node the digest of itself and all that it depends on."""
    digests: dict[str, str] = {}
    for node_id in in_order(prompt):
        node = prompt[node_id]
        links = links_of(node)
        literals = {k: v for k, v in node.get("inputs", {}).items() if k not in links}
        # A link to a node that does not exist has nothing but its id to tell it from others.
        sources = {
            name: [digests.get(source, {"missing": source}), slot]
            for name, (source, slot) in links.items()
        }
        digests[node_id] = _sha256([node.get("class_type"), literals, sources])
    return digests


def model_key(prompt: Prompt, is_loader: IsLoader | None = None) -> str:
    """Return a digest of the models that a prompt loads; empty if it loads none.

    Of a node that names weights files only these count, so that loaders with texts and sizes
    among their inputs keep their key; of other loaders all literals count.
    """
    wanted = is_loader or loads_model
    loaded = {
        _sha256([class_type, _identity(node)])
        for node in prompt.values()
        if wanted(class_type := node.get("class_type", ""), node.get("inputs", {}))
    }
    return _sha256(sorted(loaded)) if loaded else ""


def weights_of(prompt: Prompt) -> list[str]:
    """Return the names of all weights files in a prompt, with forward slashes."""
    return sorted({name for node in prompt.values() for name in _weights(node.get("inputs", {}))})


def loads_model(class_type: str, inputs: Mapping[str, Any]) -> bool:
    """Return whether a node loads a model, as far as its class and inputs show."""
    if any(word in class_type for word in LOADER_WORDS):
        return True
    return not links_of({"inputs": inputs}) and bool(_weights(inputs))


def _identity(node: Mapping[str, Any]) -> object:
    links = links_of(node)
    literals = {k: v for k, v in node.get("inputs", {}).items() if k not in links}
    return _weights(literals) or literals


def _weights(literals: Mapping[str, Any]) -> list[str]:
    """Return the weights files among literals, the same for both kinds of path separators."""
    names = (name.replace("\\", "/") for name in strings_in(literals) if is_weights_file(name))
    return sorted(set(names))


def _sha256(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
