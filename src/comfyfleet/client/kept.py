"""Results that are here already: what another machine has in its cache is not sent again.

A ComfyUI that says that every node was cached gives the very values that it gave for an equal
prompt before, for as long as it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from comfyfleet.client.comfyui import Message
from comfyfleet.client.pictures import RETURN_NODE
from comfyfleet.graph import digest
from comfyfleet.work import Packed, Prompt

#: Of all that is kept; the oldest go first.
_KEPT_BYTES = 1 << 29
#: A result of no tensors takes something too.
_LEAST = 4096


class Kept:
    """The last results of one ComfyUI, by their prompts."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._results: OrderedDict[str, Packed] = OrderedDict()

    def find(self, prompt: Prompt, cached: set[str]) -> Packed | None:
        """The result of an equal prompt, if all nodes came out of ComfyUI's cache this time."""
        if any(key not in cached for key, node in prompt.items() if not _returns(node)):
            return None
        return self._results.get(digest(prompt))

    def clear(self) -> None:
        """Keep nothing."""
        self._results.clear()

    def keep(self, prompt: Prompt, packed: Packed) -> None:
        """Keep what the prompt, as it is without the name of an attempt, has given."""
        self._results[digest(prompt)] = packed
        total = sum(map(_size, self._results.values()))
        while total > self._kept_bytes:
            total -= _size(self._results.popitem(last=False)[1])


class CacheWatch:
    """Hears what ComfyUI tells of a prompt, for the nodes that it did not run."""

    def __init__(self) -> None:
        self.cached: set[str] = set()

    def __call__(self, message: Message) -> None:
        event, data = message
        if event == "execution_cached" and isinstance(data.get("nodes"), list):
            self.cached |= {node for node in data["nodes"] if isinstance(node, str)}


def _returns(node: Mapping[str, Any]) -> bool:
    return bool(node["class_type"] == RETURN_NODE)


def _size(packed: Packed) -> int:
    return _LEAST + sum(len(buffer) for buffer in packed.buffers)
