"""Places for workers in a cluster: which nodes are fit, and what is free on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from comfyfleet.client.setup import own_setup
from comfyfleet.fleet.cluster_worker import NodeSpec, code_digest, own_version
from comfyfleet.fleet.ray_node import CPU_SLOT
from comfyfleet.fleet.spec import Host
from comfyfleet.planner import Device

#: For all nodes together; each starts a process of Python for it.
_SURVEY_S = 60.0

#: Ray's name of a resource -> the kind of device and what people call one.
_KINDS = {"GPU": ("cuda", "gpu"), CPU_SLOT: ("cpu", "cpu")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    id: str
    address: str
    name: str
    #: Ray's name -> how many there are, and how many of them nobody uses.
    slots: dict[str, int]
    free: dict[str, int]


class Slots:
    """The places of a cluster, for the workers of one fleet."""

    def __init__(self, host: Host) -> None:
        self._host = host
        #: Nodes that have answered, and addresses whose workers come back with their node.
        self._asked: set[str] = set()
        self._served: set[str] = set()
        self._taken: Counter[str] = Counter()
        #: What is left out of each node that is there.
        self._notes: dict[str, list[str]] = {}

    @property
    def notes(self) -> list[str]:
        """What is left out now: nodes that are not fit, and places that others use."""
        return [note for notes in self._notes.values() for note in notes]

    def look(self) -> tuple[list[NodeSpec], list[str]]:
        """A spec per free place of nodes that are new, and sentences about what is left out.

        Each sentence is given once, and is among ``notes`` for as long as it holds.
        """
        there = _nodes()
        new = [node for node in there if node.id not in self._asked]
        nodes = [node for node in new if node.address not in self._served]
        known = self.notes
        self._notes = {node.id: self._notes.get(node.id, []) for node in there}
        specs: list[NodeSpec] = []
        silent = set()
        answers = _survey(nodes, str(self._host.comfyui))
        for node, answer in zip(nodes, answers, strict=True):
            fault = _fault_of(answer)
            left_out = f"{node.name} ({node.address}) is left out: {fault}"
            self._notes[node.id] = [left_out] if fault else _used(node)
            specs += [] if fault else _specs_of(node, self._host, self._taken)
            silent |= {node.id} if _UNKNOWN in answer else set()
        self._asked |= {node.id for node in new} - silent
        self._served |= {spec.address for spec in specs}
        return specs, [note for note in self.notes if note not in known]


def _used(node: _Node) -> list[str]:
    return [
        f"{node.name} ({node.address}): {count - node.free[kind]} of {count} "
        f"{_KINDS[kind][1]} places are used by another job."
        for kind, count in node.slots.items()
        if node.free[kind] < count
    ]


def _specs_of(node: _Node, host: Host, taken: Counter[str]) -> list[NodeSpec]:
    specs, own = [], own_setup(host.comfyui, host.flags)
    for kind, count in node.free.items():
        device, word = _KINDS[kind]
        for _ in range(count):
            stem = f"{node.name}-{word}"
            name = f"{stem}{taken[stem]}"
            taken[stem] += 1
            specs.append(
                NodeSpec(
                    id=name,
                    device=Device(kind=device),
                    host=host,
                    address=node.address,
                    node=node.name,
                    cpu_workers=node.slots.get(CPU_SLOT, 1),
                    own=own,
                )
            )
    return specs


def _nodes() -> list[_Node]:
    """The living nodes that offer a place, under names that differ where addresses do."""
    alive = [node for node in _ray_nodes() if node["Alive"] and _counts(node["Resources"])]
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    hosts = {(node["NodeManagerAddress"], node["NodeManagerHostname"]) for node in alive}
    same = Counter(name for _, name in hosts)
    found = []
    for node in sorted(alive, key=lambda node: str(node["NodeManagerAddress"])):
        slots, address = _counts(node["Resources"]), str(node["NodeManagerAddress"])
        name = str(node["NodeManagerHostname"])
        left = _counts(free.get(node["NodeID"], {}))
        found.append(
            _Node(
                id=node["NodeID"],
                address=address,
                name=_plain(name if same[name] == 1 else address),
                slots=slots,
                free={kind: left.get(kind, 0) for kind in slots},
            )
        )
    return found


def _ray_nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _counts(resources: dict[str, float]) -> dict[str, int]:
    return {kind: int(resources[kind]) for kind in _KINDS if resources.get(kind, 0) >= 1}


def _plain(name: str) -> str:
    """As a part of a worker's name, which stands in addresses and in names of files."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip(".-") or "node"


def _survey(nodes: Sequence[_Node], comfyui: str) -> list[dict[str, str]]:
    """What each node says of itself, in their order; who does not is asked again next time."""
    describe = _describer()
    asked = [
        describe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(comfyui)
        for node in nodes
    ]
    ready = set(ray.wait(asked, num_returns=len(asked), timeout=_SURVEY_S)[0]) if asked else set()
    return [_answer(ref) if ref in ready else _no_answer(ref) for ref in asked]


#: In an answer: it is none, and the node is asked again.
_UNKNOWN = "unknown"


def _no_answer(ref: Any) -> dict[str, str]:
    ray.cancel(ref)  # it would be answered late, to nobody
    return {"fault": f"it did not answer in {_SURVEY_S:.0f} s; asked again.", _UNKNOWN: "yes"}


def _answer(ref: Any) -> dict[str, str]:
    try:
        answer: dict[str, str] = ray.get(ref)
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]
        return {"fault": f"it could not be asked ({why}); asked again.", _UNKNOWN: "yes"}
    return answer


def _describer() -> Any:
    """A task that a node can run although it may not have this package: sent as a value."""

    def describe(comfyui: str) -> Any:
        try:
            from comfyfleet.fleet.cluster_worker import describe_node
        except ImportError as error:
            return {"fault": f"it has no ComfyFleet, or an old one ({error})."}
        return describe_node(comfyui)

    return ray.remote(num_cpus=0, max_retries=0)(describe)


def _fault_of(answer: dict[str, str]) -> str:
    if answer["fault"]:
        return answer["fault"]
    if answer["code"] == code_digest():
        return ""
    return (
        f"its ComfyFleet ({answer['version']}) is not the same as this one ({own_version()}). "
        "Install the same on both."
    )
