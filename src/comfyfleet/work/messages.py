"""Why a run failed or a worker gets nothing, for the person who wants to know."""

from __future__ import annotations

from collections.abc import Sequence

from comfyfleet.work.state import Health, Job, Run

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


def nobody_fits(job: Job) -> str:
    """What each worker lacks."""
    text = "\n".join(f"on worker {who}: {failure.message}" for who, failure in job.unfit.items())
    return (
        f"no worker can run unit {job.id}; install there what is missing, or leave it out\n{text}"
    )


def unit_failed(job: Job, nobody_else: str = "") -> str:
    """The failures in the workers' own words, and why nobody tries again."""
    ends = (*job.failures.items(), *job.unfit.items())
    text = "\n".join(f"on worker {who}: {failure}" for who, failure in ends)
    head = f"unit {job.id} failed on {_counted(len(job.failures), 'worker')}"
    return f"{head}{f' ({nobody_else})' if nobody_else else ''}\n{text}"


def unit_kills_workers(job: Job) -> str:
    return (
        f"unit {job.id} seems to kill workers: it was lost {_counted(len(job.losses), 'time')} "
        f"with the worker that ran it: {_listed([f'{who} ({why})' for who, why in job.losses])}"
    )


def unit_out_of_memory(job: Job) -> str:
    """Who ran out of memory with it, and who failed otherwise; nobody else may take it."""
    num = _counted(len(job.shortages), "worker")
    again = "; once more after all memory was freed there" if job.tried_again else ""
    ends = (*job.shortages.items(), *job.failures.items(), *job.unfit.items())
    text = "\n".join(f"on worker {who}: {failure}" for who, failure in ends)
    names = _listed(list(job.shortages))
    return (
        f"unit {job.id} ran out of memory on {num}: {names}{again}; nobody else may try it\n{text}"
    )


def quarantined(health: Health) -> str:
    """Why a worker goes into quarantine, or goes there again."""
    last = health.blames[-1][1]
    if health.num_quarantines:
        return f"it failed again after quarantine: {last}"
    return f"it failed {_counted(len(health.blames), 'time')} in a row, the last time: {last}"


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _MAX_LISTED
    return ", ".join(items[-_MAX_LISTED:]) + (f" and {more} before" if more > 0 else "")


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
