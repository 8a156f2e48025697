"""What must hold between two events; checked after each one in tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from comfyfleet.work.matching import Matcher
from comfyfleet.work.roster import Bench, Roster
from comfyfleet.work.state import Job, Run, Worker


def check_invariants(
    roster: Roster, bench: Bench, matcher: Matcher, runs: Mapping[str, Run], jobs: Mapping[str, Job]
) -> None:
    """Raise AssertionError, naming what is wrong."""
    for worker in roster.workers.values():
        _check_worker(worker, bench, runs)
    assert len(bench) == sum(worker.state == "idle" for worker in roster.workers.values())
    assert sum(len(run.jobs) for run in runs.values()) == len(jobs)
    for run in runs.values():
        assert run.jobs and not run.ended, f"run {run.id} has ended and is still here"
        assert not run.pool or (run.queued and run in matcher.queue), f"run {run.id} not queued"
        for job in run.jobs.values():
            _check_job(job, roster, jobs)
        _check_nobody_idles(run, roster, matcher)


def _check_worker(worker: Worker, bench: Bench, runs: Mapping[str, Run]) -> None:
    assert (worker in bench) == (worker.state == "idle"), f"{worker.id} is {worker.state}"
    attempt = worker.attempt
    if attempt is None:
        return
    job = attempt.job
    assert attempt.worker is worker and not attempt.over
    assert attempt.wanted or attempt.interrupted, f"{worker.id} runs {job.id} for nobody"
    if attempt.wanted:
        assert runs[job.run.id].running[worker.id] is attempt
        given_up = worker.id not in job.attempts
        assert given_up == attempt.interrupted == worker.stuck, f"{job.id}: {job.tell()}"


def _check_job(job: Job, roster: Roster, jobs: Mapping[str, Job]) -> None:
    story = f"{job.id}: {job.tell()}"
    assert jobs[job.id] is job and not job.done, story
    pending = job in job.run.pool
    speculated = Counter(attempt.overdue for attempt in job.attempts.values())
    assert len(job.attempts) <= 2, f"on more than two workers, {story}"
    assert pending or job.attempts, f"forgotten, {story}"
    if pending:
        assert len(job.attempts) == speculated[True] <= 1, f"pending while it runs, {story}"
    if not job.attempts:
        assert roster.num_able(job.run.id, job.failures), f"nobody may take it, {story}"
    for worker_id, attempt in job.attempts.items():
        assert roster.workers[worker_id].attempt is attempt, story


def _check_nobody_idles(run: Run, roster: Roster, matcher: Matcher) -> None:
    """An idle worker that could take a unit waits for somebody faster, who is on the way."""
    for worker in roster.workers.values():
        if worker.state != "idle" or not worker.serves(run.id):
            continue
        if run.pool.find_first(worker.id) is None:
            continue
        slowness = worker.slowness.value
        assert slowness is not None, f"{worker.id} waits, and was never measured"
        assert matcher.recheck_at is not None, f"{worker.id} waits, and nobody will ask again"
        assert any(
            other.state == "busy" and (other.slowness.value or slowness) <= slowness
            for other in roster.workers.values()
        ), f"{worker.id} waits for nobody"
