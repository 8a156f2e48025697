"""What a ComfyUI known by its address can run, from its own description of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyfleet.errors import Unreachable
from comfyfleet.graph import as_link
from comfyfleet.work import Prompt

#: More classes or choices than any installation has.
_MAX_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a prompt needs where it runs."""

    name: str
    #: Whose choice it is, such as "VAELoader.vae_name"; empty for a node class.
    input: str = ""

    def __str__(self) -> str:
        return f"{self.name!r} for {self.input}" if self.input else f"node class {self.name}"


def in_words(lacking: Sequence[Need | str]) -> str:
    """All that is missing in a sentence, and what to do about node classes and files."""
    needs = [each for each in lacking if isinstance(each, Need)]
    remedies = []
    if any(not each.input for each in needs):
        remedies.append("install the packs of such nodes there")
    if any(each.input for each in needs):
        remedies.append("put such files there (`comfyfleet models`)")
    text = "; ".join(map(str, lacking))
    return f"{text}: {' and '.join(remedies)}." if remedies else f"{text}."


class Inventory:
    """Node classes, and the files among which their inputs choose."""

    def __init__(self, url: str, described: Any) -> None:
        """``described``: the answer to /object_info. Raises Unreachable if it is none."""
        if not isinstance(described, Mapping) or "SaveImage" not in described:
            raise Unreachable(url, "it has no list of nodes as ComfyUI has; is it a ComfyUI?")
        if len(described) > _MAX_CLASSES:
            raise Unreachable(url, f"it names {len(described)} node classes")
        self._classes: Mapping[str, Mapping[str, Any]] = described

    @property
    def classes(self) -> list[str]:
        """All node classes."""
        return list(self._classes)

    def is_paid(self, class_type: str) -> bool:
        """Does it ask a service on the network, with the login of who queued the prompt?"""
        return bool(self._described(class_type).get("api_node"))

    def knows(self, class_type: str) -> bool:
        """Is there such a node class?"""
        return class_type in self._classes

    def is_output(self, class_type: str) -> bool:
        """Does ComfyUI run such a node for its own sake?"""
        return bool(self._described(class_type).get("output_node"))

    def output_type(self, class_type: str, slot: int) -> str:
        """The type of a node's output; "" if it is a list of values, or unknown."""
        described = self._described(class_type)
        types, lists = described.get("output"), described.get("output_is_list") or ()
        if not isinstance(types, list) or not isinstance(lists, list | tuple):
            return ""
        if not 0 <= slot < len(types) or (slot < len(lists) and lists[slot]):
            return ""
        return types[slot] if isinstance(types[slot], str) else "COMBO"

    def missing(self, prompt: Prompt, sent: frozenset[str] = frozenset()) -> list[Need]:
        """What is missing there to run the prompt, each once; ``sent`` files need not be there."""
        missing = {node["class_type"] for node in prompt.values()} - self._classes.keys()
        found = [Need(name) for name in sorted(missing)]
        found += [
            Need(value, f"{class_type}.{name}")
            for class_type, name, value, options in self._choices(prompt)
            if value not in sent and value not in options
        ]
        return list(dict.fromkeys(found))

    def adapted(self, prompt: Prompt) -> dict[str, Mapping[str, Any]]:
        """The prompt with names of files written with that machine's separators."""
        spelled: dict[tuple[str, str], str] = {}
        for class_type, name, value, options in self._choices(prompt):
            alike = {str(option).replace("\\", "/"): option for option in options}
            wanted = alike.get(value.replace("\\", "/"))
            if isinstance(wanted, str) and wanted != value and value not in options:
                spelled[f"{class_type}.{name}", value] = wanted
        return {node_id: _respelled(node, spelled) for node_id, node in prompt.items()}

    def _choices(self, prompt: Prompt) -> Iterator[tuple[str, str, str, Sequence[Any]]]:
        """Each text that an input takes from a list: class, input, text, list."""
        for node in prompt.values():
            class_type = node["class_type"]
            for name, value in node.get("inputs", {}).items():
                options = self._options(class_type, name)
                if isinstance(value, str) and not as_link(value) and options is not None:
                    yield class_type, name, value, options

    def _described(self, class_type: str) -> Mapping[str, Any]:
        found = self._classes.get(class_type)
        return found if isinstance(found, Mapping) else {}

    def _options(self, class_type: str, name: str) -> Sequence[Any] | None:
        """What an input may be; None if it is no choice. Both of ComfyUI's forms are known."""
        groups = self._described(class_type).get("input")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            spec = group.get(name) if isinstance(group, Mapping) else None
            if not isinstance(spec, list) or not spec:
                continue
            if isinstance(spec[0], list):
                return spec[0]
            further = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
            options = further.get("options")
            return options if spec[0] == "COMBO" and isinstance(options, list) else None
        return None


def _respelled(
    node: Mapping[str, Any], spelled: Mapping[tuple[str, str], str]
) -> Mapping[str, Any]:
    class_type, inputs = node["class_type"], node.get("inputs", {})
    changed = {
        name: spelled[key]
        for name, value in inputs.items()
        if isinstance(value, str) and (key := (f"{class_type}.{name}", value)) in spelled
    }
    return {**node, "inputs": {**inputs, **changed}} if changed else node
