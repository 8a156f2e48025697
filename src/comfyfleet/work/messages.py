"""Why a run failed, for the person who started it."""

from __future__ import annotations

from collections.abc import Sequence

from comfyfleet.work.state import Job, Run

_MAX_LISTED = 8  # a fleet of a thousand may lose hundreds


def nobody_serves(run: Run, stuck: Sequence[str]) -> str:
    """No worker is left that may take a unit of the run."""
    parts = []
    if run.lost:
        parts.append(f"lost: {_listed(run.lost)}")
    if stuck:
        parts.append(f"stuck, not answering: {_listed(stuck)}")
    if not parts:
        return "no worker is there to run it; start one first."
    return "no worker is left that may run it; " + "; ".join(parts)


def unit_failed(job: Job, nobody_else: str = "") -> str:
    """The failures in the workers' own words, and why nobody tries again."""
    text = "\n".join(f"on worker {who}: {failure}" for who, failure in job.failures.items())
    head = f"unit {job.id} failed on {_counted(len(job.failures), 'worker')}"
    return f"{head}{f' ({nobody_else})' if nobody_else else ''}\n{text}"


def unit_kills_workers(job: Job) -> str:
    return (
        f"unit {job.id} seems to kill workers: it was lost {_counted(len(job.losses), 'time')} "
        f"with the worker that ran it: {_listed(job.losses)}"
    )


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _MAX_LISTED
    return ", ".join(items[-_MAX_LISTED:]) + (f" and {more} before" if more > 0 else "")


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
