"""Attempts that began before the pace of their model was known, so with a deadline by guess."""

from __future__ import annotations

from collections.abc import Iterator

from comfyfleet.work.speed import Speed
from comfyfleet.work.state import Attempt


class Guesses:
    """Looked at again whenever more is known: twice per model at the most."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._attempts: list[Attempt] = []

    def note(self, attempt: Attempt) -> None:
        """Remember an attempt that has just begun, if its pace is not known for sure."""
        if self._speed.knowledge(attempt.job.unit) < 2:
            self._attempts.append(attempt)

    def judge(self) -> Iterator[tuple[Attempt, float]]:
        """The attempts for which there is an estimate now, with their seconds."""
        attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            if attempt.over or attempt.interrupted or attempt.overdue or attempt.fraction:
                continue
            seconds = self._speed.find(attempt.worker, attempt.job.unit)
            if seconds is not None:
                yield attempt, seconds
            self.note(attempt)
