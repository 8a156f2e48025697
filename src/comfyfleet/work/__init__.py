"""The vocabulary of work, and dispatch as a pure state machine."""

from __future__ import annotations

from comfyfleet.work.dispatch import Dispatch, InvalidEventError
from comfyfleet.work.events import (
    CancelRun,
    Deliver,
    Discard,
    Event,
    FailRun,
    FinishRun,
    Instruction,
    Interrupt,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
    WorkerReturned,
)
from comfyfleet.work.policy import Policy
from comfyfleet.work.results import (
    OutputFile,
    Packed,
    Progress,
    Result,
    TensorRef,
    VideoRef,
)
from comfyfleet.work.state import WorkerState
from comfyfleet.work.units import Failure, Prompt, Unit, WorkerInfo

__all__ = [
    "CancelRun",
    "Deliver",
    "Discard",
    "Dispatch",
    "Event",
    "FailRun",
    "Failure",
    "FinishRun",
    "Instruction",
    "Interrupt",
    "InvalidEventError",
    "OutputFile",
    "Packed",
    "Policy",
    "Progress",
    "Prompt",
    "Result",
    "RunCancelled",
    "RunSubmitted",
    "Start",
    "TensorRef",
    "Tick",
    "Unit",
    "UnitDone",
    "UnitFailed",
    "UnitProgress",
    "VideoRef",
    "WorkerInfo",
    "WorkerJoined",
    "WorkerLent",
    "WorkerLost",
    "WorkerReturned",
    "WorkerState",
]
