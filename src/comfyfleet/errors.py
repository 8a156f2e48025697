"""Every error that ComfyFleet raises on purpose.

ComfyFleetError              what was given, what is allowed, what to do
├── InputError               a workflow, option or value is wrong; nothing has started
│   ├── Unfit                a worker lacks what a unit needs; another may have it
│   └── WorkflowError        one or more problems of a workflow, each with node id and class
├── FleetError               the fleet cannot start, or has no worker left
│   ├── WorkerStartError     one worker could not start; carries the end of its log
│   └── Unreachable          a ComfyUI does not answer at its address, or not as one
├── AccessError              who asks may not; carries the HTTP status
├── ParallelError            one forward could not be computed by several devices
│   ├── CannotSplit          its inputs or its model cannot be split exactly; says why
│   └── LinkLost             another rank died, or is late
├── JournalError             the queue cannot be kept on disk
│   └── JournalInUse         another ComfyUI keeps its queue in the same file
└── RunError                 a run ended without all of its results
    ├── RunFailed            a unit failed for good; carries the worker's traceback
    └── RunCancelled         somebody stopped it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ComfyFleetError(Exception):
    """Root of the tree; its text is meant for the user."""


class InputError(ComfyFleetError):
    """Something that the user gave is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a workflow, tied to the node that it concerns (if any)."""

    message: str
    node_id: str | None = None
    class_type: str | None = None

    def __str__(self) -> str:
        if self.node_id is None:
            return self.message
        return f"node {self.node_id} ({self.class_type or 'unknown class'}): {self.message}"


class WorkflowError(InputError):
    """A workflow cannot run as it is; ``problems`` lists everything that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[WorkflowError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class Unfit(InputError):
    """A worker lacks what a unit needs; another one may have it."""


class FleetError(ComfyFleetError):
    """The fleet as a whole cannot do what was asked."""


class WorkerStartError(FleetError):
    """A worker did not come up; the message ends with the last lines of its log."""


class Unreachable(FleetError):
    """A ComfyUI does not answer at its address, or answers as something else."""

    def __init__(self, url: str, why: str) -> None:
        self.url, self.why = url, why
        super().__init__(f"{url}: {why}.")

    def __reduce__(self) -> tuple[type[Unreachable], tuple[str, str]]:
        return type(self), (self.url, self.why)


class AccessError(ComfyFleetError):
    """A request is not let in. ``status``: what HTTP says of it; ``wait_s``: ask again then."""

    def __init__(self, status: int, message: str, *, wait_s: int = 0) -> None:
        self.status, self.wait_s = status, wait_s
        super().__init__(message)

    def __reduce__(self) -> tuple[type[AccessError], tuple[int, str]]:
        return type(self), (self.status, str(self))


class ParallelError(ComfyFleetError):
    """One forward could not be computed by several devices; one device can."""


class CannotSplit(ParallelError):
    """The model or one of its inputs cannot be split exactly."""


class LinkLost(ParallelError):
    """A rank of the gang died, or does not answer."""


class JournalError(ComfyFleetError):
    """The queue cannot be kept on disk."""


class JournalInUse(JournalError):
    """Another ComfyUI keeps its queue in the same file."""


class RunError(ComfyFleetError):
    """A run ended without all of its results."""


class RunFailed(RunError):
    """A unit failed for good; the message holds the worker's own traceback."""


class RunCancelled(RunError):
    """The run was stopped on request."""
