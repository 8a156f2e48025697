"""What must hold between two events; checked after each one in tests."""

from __future__ import annotations

from collections import Counter

from comfyfleet.work.board import Board
from comfyfleet.work.care import Care
from comfyfleet.work.runs import Runs
from comfyfleet.work.state import Job, Run, Worker


def check_invariants(board: Board, runs: Runs, care: Care) -> None:
    """Raise AssertionError, naming what is wrong."""
    roster = board.roster
    for worker in roster.workers.values():
        _check_worker(worker, board, runs)
        _check_health(worker, board, care)
    for worker in roster.absent.values():
        _check_absent(worker, board)
    assert len(board.bench) == sum(worker.state == "idle" for worker in roster.workers.values())
    assert sum(len(run.jobs) for run in runs.live.values()) == len(runs.jobs)
    for run in runs.live.values():
        _check_run(run, board)
        for job in run.jobs.values():
            _check_job(job, board, runs)
        _check_nobody_idles(run, board)


def _check_worker(worker: Worker, board: Board, runs: Runs) -> None:
    assert (worker in board.bench) == (worker.state == "idle"), f"{worker.id} is {worker.state}"
    attempt = worker.attempt
    if attempt is None:
        return
    job = attempt.job
    assert attempt.worker is worker and not attempt.over
    assert attempt.wanted or attempt.interrupted, f"{worker.id} runs {job.id} for nobody"
    if attempt.wanted:
        assert runs.live[job.run.id].running[worker.id] is attempt
        given_up = worker.id not in job.attempts
        assert given_up == attempt.interrupted == bool(worker.stuck), f"{job.id}: {job.tell()}"


def _check_health(worker: Worker, board: Board, care: Care) -> None:
    health = worker.health
    assert health.takes_units or worker not in board.ladder, f"{worker.id} is waited for"
    assert worker.only_run is not None or care.find(worker.id) is health
    if health.quarantine:
        release = care.next_release()
        assert worker.attempt is None, f"{worker.id} works in quarantine"
        assert release is not None and board.now < release <= health.until


def _check_absent(worker: Worker, board: Board) -> None:
    assert worker.id not in board.roster.workers, f"{worker.id} is here and absent"
    assert worker.attempt is None and not worker.stuck and not worker.lent
    assert worker not in board.bench and worker not in board.ladder


def _check_run(run: Run, board: Board) -> None:
    assert (run.jobs or run.more) and not run.ended, f"run {run.id} has ended and is still here"
    queue = board.matcher.queue
    assert not run.pool or (run.queued and run in queue), f"run {run.id} not queued"
    order = [(queued.priority, queued.seq) for queued in queue]
    assert order == sorted(order), "the line of runs is out of order"
    roster = board.roster
    able = [w for w in (*roster.workers.values(), *roster.absent.values()) if w.serves(run)]
    assert roster.num_able(run) == len(able), f"miscounted who serves {run.id}"


def _check_job(job: Job, board: Board, runs: Runs) -> None:
    story = f"{job.id}: {job.tell()}"
    assert runs.jobs[job.id] is job and not job.done, story
    pending = job in job.run.pool
    speculated = Counter(attempt.overdue for attempt in job.attempts.values())
    assert len(job.attempts) <= 2, f"on more than two workers, {story}"
    assert pending or job.attempts, f"forgotten, {story}"
    if pending:
        assert len(job.attempts) == speculated[True] <= 1, f"pending while it runs, {story}"
    if not job.attempts:
        assert board.roster.num_able(job.run, job.barred), f"nobody may take it, {story}"
    for worker_id, attempt in job.attempts.items():
        assert board.roster.workers[worker_id].attempt is attempt, story


def _check_nobody_idles(run: Run, board: Board) -> None:
    """An idle worker that could take a unit waits for its turn to load, or for somebody faster."""
    workers = board.roster.workers.values()
    for worker in workers:
        if worker.state != "idle" or not worker.serves(run):
            continue
        if run.pool.find_first(worker.id) is None:
            continue
        assert board.matcher.recheck_at is not None, f"{worker.id} waits, nobody will ask again"
        model = worker.model_key
        holds = model is not None and run.pool.find_first(worker.id, model) is not None
        if board.matcher.holds_back_loads and not holds:
            continue
        slowness = worker.slowness.value
        assert slowness is not None, f"{worker.id} waits, and was never measured"
        assert any(
            other.state == "busy" and (other.slowness.value or slowness) <= slowness
            for other in workers
        ), f"{worker.id} waits for nobody"
