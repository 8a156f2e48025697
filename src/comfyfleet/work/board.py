"""What all parts of dispatch share: the policy, the time, the workers, the answer so far."""

from __future__ import annotations

import math

from comfyfleet.work.alarms import Alarms
from comfyfleet.work.events import Instruction, Interrupt
from comfyfleet.work.matching import Matcher
from comfyfleet.work.policy import Policy
from comfyfleet.work.roster import Bench, Roster
from comfyfleet.work.speed import Speed
from comfyfleet.work.state import Attempt, Job, Worker
from comfyfleet.work.tail import Ladder


class Board:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = -math.inf
        #: The instructions that answer the present event.
        self.out: list[Instruction] = []
        self.roster = Roster()
        self.bench = Bench()
        self.speed = Speed(policy.smoothing)
        self.ladder = Ladder(self.speed)
        self.matcher = Matcher(policy, self.bench, self.ladder)
        self.alarms = Alarms()

    def set_policy(self, policy: Policy) -> None:
        self.policy = self.matcher.policy = policy
        self.speed.smoothing = policy.smoothing

    def seat(self, worker: Worker) -> None:
        """Let units find the worker, and others wait for it, as far as its state allows."""
        self.bench.seat(worker)
        self.ladder.set(worker)

    def unseat(self, worker: Worker) -> None:
        """Nothing new for the worker, and nobody waits for it."""
        self.bench.discard(worker)
        self.ladder.discard(worker)
        self.matcher.end_waits()

    def take_from(self, worker: Worker) -> Attempt | None:
        """End the worker's attempt."""
        attempt, worker.attempt = worker.attempt, None
        if attempt is not None:
            attempt.over = True
            attempt.job.attempts.pop(worker.id, None)
            attempt.job.run.running.pop(worker.id, None)
        return attempt

    def interrupt(self, attempt: Attempt) -> None:
        if not attempt.interrupted:
            attempt.interrupted = True
            self.alarms.set(attempt, self.now + self.policy.interrupt_patience_s)
            self.out.append(Interrupt(worker_id=attempt.worker.id, unit_id=attempt.job.id))

    def note(self, job: Job, what: str, worker: Worker) -> None:
        job.story += ((self.now, what, worker.id),)
