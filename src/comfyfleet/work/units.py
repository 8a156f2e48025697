"""The vocabulary: a run is made of units, workers take units and give results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from comfyfleet.work.results import Packed, Progress, Result, Told

#: A ComfyUI prompt in API format: node id -> {"class_type": str, "inputs": {...}}.
Prompt = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """A prompt as a client queued it at the master: a worker runs it so, and tells all.

    ``outputs`` are the ids of the output nodes to run, ``features`` what the client understands.
    """

    prompt_id: str
    extra_data: Mapping[str, Any] = field(repr=False)
    outputs: tuple[str, ...]
    features: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of a graph to run somewhere, and its place in the run's order.

    The prompt ends in the output nodes whose results come back. ``cost`` is relative to
    the other units of the run (1.0 = an average one).
    """

    run_id: str
    index: int
    prompt: Prompt = field(repr=False, compare=False)
    #: Digest of the models that the prompt loads: workers that hold them are preferred.
    model_key: str = ""
    cost: float = 1.0
    #: How many items of a batch it works on, if it can be cut between them; see `RunSubmitted`.
    items: int = 1
    #: Set if this is a whole prompt of the master's queue.
    mirrored: Mirrored | None = field(default=None, repr=False, compare=False)
    #: What the prompt's shipped nodes give, by digest. Equal values are one object in all units of
    #: a run, and stored once.
    values: Mapping[str, Packed] = field(default_factory=dict, repr=False, compare=False)
    #: Those of them that no other unit of the run has: let go of when it is delivered.
    own: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def id(self) -> str:
        return f"{self.run_id}:{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """What a ready worker says of itself."""

    id: str
    device: str
    device_name: str
    pid: int
    comfyui_version: str
    log_file: str
    #: The machine that it runs on, and its process and log are of; empty: this one.
    host: str = ""
    #: What its owner should know of it; nothing that keeps it from working.
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, in the worker's own words.

    ``out_of_memory`` is neither the workflow's fault nor the worker's: another may have more.
    ``unfit`` was said before anything began: the worker lacks a node class, a file or the like.
    """

    message: str
    traceback: str = ""
    node_id: str | None = None
    class_type: str | None = None
    kind: Literal["error", "out_of_memory", "unfit"] = "error"

    def __str__(self) -> str:
        where = f"node {self.node_id} ({self.class_type}): " if self.node_id else ""
        return f"{where}{self.message}" + (f"\n{self.traceback}" if self.traceback else "")


#: What comes from an attempt while it lasts, and what ends it.
Happening: TypeAlias = Progress | Told | Failure | Result
