"""What a fleet tells of itself, as plain data: ``dataclasses.asdict`` makes the JSON.

Times are seconds since 1970, durations are seconds, memory is in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal[
    "idle",
    "busy",
    "paused",
    "quarantined",
    "stuck",
    "lent",
    "starting",
    "restarting",
    "gone",
]

#: How one start of a unit on a worker ended. "interrupted": nobody wanted its result any more.
AttemptOutcome = Literal["running", "done", "failed", "lost", "interrupted"]
RunOutcome = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a worker uses, and what its device has; None where it is not known (yet)."""

    rss_bytes: int | None = None
    device_free_bytes: int | None = None
    device_total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker has in hand. ``node``, ``step`` and ``steps`` are known of queued prompts."""

    run: str
    unit: int
    prompt_id: str
    started: float
    fraction: float = 0.0
    node: str = ""
    step: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that went wrong, and when."""

    message: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker now, and what it did since the fleet was started."""

    id: str
    state: State
    #: Why it is paused, quarantined, stuck, restarting or gone; else empty.
    reason: str
    device: str
    device_name: str = ""
    #: The machine that process and log are of; empty: the fleet's own.
    host: str = ""
    #: What the owner should know of a worker elsewhere: what it cannot do, what differs there.
    note: str = ""
    pid: int | None = None
    log_file: str = ""
    memory: Memory = Memory()
    #: Digest of the models that it holds; None if it holds none, or nobody knows which.
    model_key: str | None = None
    task: Task | None = None
    #: With the models that it holds, as measured; None before that.
    units_per_second: float | None = None
    failures_in_row: int = 0
    last_error: Fault | None = None
    units_done: int = 0
    units_failed: int = 0
    units_lost: int = 0
    busy_seconds: float = 0.0
    restarts: int = 0
    quarantines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStatus:
    """One start of a unit on a worker."""

    unit: int
    worker: str
    started: float
    seconds: float
    outcome: AttemptOutcome
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run; it is a prompt of ComfyUI's queue if it has a ``prompt_id``."""

    id: str
    lane: str
    prompt_id: str
    units: int
    units_done: int
    #: How many were replaced by two smaller ones, as no worker had the memory for them.
    units_halved: int
    submitted: float
    ended: float | None
    outcome: RunOutcome
    error: str
    #: The latest of them, in the order of their start; ``num_attempts`` counts all.
    attempts: tuple[AttemptStatus, ...]
    num_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Runs that have ended since the fleet was started, and those of them that were prompts."""

    runs_done: int = 0
    runs_failed: int = 0
    runs_cancelled: int = 0
    prompts_done: int = 0
    prompts_failed: int = 0
    prompts_cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A fleet at one moment."""

    #: Events up to this number are in it.
    seq: int
    time: float
    #: What of a cluster is left out, and why.
    notes: tuple[str, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    #: Those that have ended, oldest first, then the others in order of submission.
    runs: tuple[RunStatus, ...] = ()
    #: Runs of which nothing has begun; ``runs`` has the first of them.
    runs_waiting: int = 0
    totals: Totals = Totals()


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event for those who watch. ``data`` is JSON; docs/watching.md lists the kinds."""

    seq: int
    time: float
    kind: str
    data: Mapping[str, Any]
