"""Results that are here already: what another machine has in its cache is not sent again.

A ComfyUI that says that every node was cached gives the very values that it gave for an equal
prompt before, for as long as it runs, and has saved nothing since that they would be found in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from comfyfleet.client.comfyui import Message
from comfyfleet.client.pictures import RETURN_NODE
from comfyfleet.graph import digest, node_digests
from comfyfleet.work import Prompt, Result, SavedFile

#: Of all that is kept; the oldest go first.
_KEPT_BYTES = 1 << 29
#: A result without tensors and files takes something too.
_LEAST = 4096


class Kept:
    """The last results and files of one ComfyUI, by what they were made from."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._items: OrderedDict[str, Result | SavedFile] = OrderedDict()

    def find(self, prompt: Prompt, cached: set[str]) -> Result | None:
        """The result of an equal prompt, if all nodes came out of ComfyUI's cache this time."""
        if any(key not in cached for key, node in prompt.items() if not _returns(node)):
            return None
        found = self._items.get(digest(prompt))
        return found if isinstance(found, Result) else None

    def keep(self, prompt: Prompt, result: Result) -> None:
        """Keep what the prompt, as it is without the name of an attempt, has given."""
        self._put(digest(prompt), result)

    def find_file(self, key: str) -> SavedFile | None:
        """The file that was kept under this key."""
        found = self._items.get(key)
        return found if isinstance(found, SavedFile) else None

    def keep_file(self, key: str, file: SavedFile) -> None:
        """Keep a file that a node has saved; ``key`` says by what it was made, and its name."""
        self._put(key, file)

    def clear(self) -> None:
        """Keep nothing."""
        self._items.clear()

    def _put(self, key: str, item: Result | SavedFile) -> None:
        self._items[key] = item
        total = sum(map(_size, self._items.values()))
        while total > self._kept_bytes:
            total -= _size(self._items.popitem(last=False)[1])


class CacheWatch:
    """Hears what ComfyUI tells of a prompt, for the nodes that it did not run."""

    def __init__(self) -> None:
        self.cached: set[str] = set()

    def __call__(self, message: Message) -> None:
        event, data = message
        if event == "execution_cached" and isinstance(data.get("nodes"), list):
            self.cached |= {node for node in data["nodes"] if isinstance(node, str)}


class Source:
    """What the files of one prompt are made from."""

    def __init__(self, prompt: Prompt) -> None:
        self._digests = node_digests(prompt)
        self._watch = CacheWatch()
        self.hear = self._watch

    def is_cached(self, node_id: Any) -> bool:
        """Did ComfyUI say that it did not run this node?"""
        return isinstance(node_id, str) and node_id in self._watch.cached

    def key_of(self, node_id: Any, name: object) -> str:
        """What a file of a node is kept under; empty if the prompt has no such node.

        Nodes that expand into others have made those, and nobody has said from what.
        """
        digest_ = self._digests.get(node_id) if isinstance(node_id, str) else None
        return f"{digest_} {name}" if digest_ else ""


def _returns(node: Mapping[str, Any]) -> bool:
    return bool(node["class_type"] == RETURN_NODE)


def _size(item: Result | SavedFile) -> int:
    if isinstance(item, SavedFile):
        return _LEAST + len(item.data or b"")
    buffers = item.values.buffers if item.values is not None else []
    return _LEAST + sum(map(len, [*buffers, *(file.data for file in item.files)]))
