"""Work that is spread, as far as this process alone computes it."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from concurrent.futures import Future
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from comfyfleet.errors import WorkerStartError

pytestmark = pytest.mark.comfy


class Cancelled:
    """A job of two tasks; the user cancels when it is asked for the second, and it is told."""

    done = False

    def __init__(self) -> None:
        self.first_has_begun = threading.Event()
        self._asked = 0

    def next(self) -> Any:
        from comfy.model_management import InterruptProcessingException

        from comfyfleet.extension.spread.job import Task

        self._asked += 1
        if self._asked == 1:
            return Task(index=0, value=0, num_bytes=0)
        assert self.first_has_begun.wait(60)
        raise InterruptProcessingException

    def take(self, index: int, value: Any) -> None: ...


class Squares:
    """A job of three tasks, whose first result comes before the fleet is heard of."""

    def __init__(self, fleet: Future[Any]) -> None:
        self._fleet = fleet
        self.found: dict[int, int] = {}
        self._given = 0

    @property
    def done(self) -> bool:
        return len(self.found) == 3

    def next(self) -> Any:
        from comfyfleet.extension.spread.job import Task

        if self._given > len(self.found) or self._given == 3:
            return None  # one after the other
        self._given += 1
        return Task(index=self._given - 1, value=self._given - 1, num_bytes=0)

    def take(self, index: int, value: Any) -> None:
        self.found[index] = value
        if len(self.found) == 1:
            self._fleet.set_exception(WorkerStartError("worker cpu could not start"))


def test_a_fleet_that_cannot_start_costs_no_task(
    values: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    from comfyfleet.extension.spread.job import Spread, Template

    fleet: Future[Any] = Future()
    job = Squares(fleet)
    template = Template(prompt={}, task_node="t", values={})
    Spread(job, lambda value: value * value, template=template, fleet=fleet).run()
    assert job.found == {0: 0, 1: 1, 2: 4}
    assert "this device computes alone" in caplog.text and "could not start" in caplog.text


def test_what_there_is_no_memory_for_waits_for_the_fleet(
    values: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if that does not come, the error is that of the device."""
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    import torch

    from comfyfleet.extension.spread.job import Spread, Template

    fleet: Future[Any] = Future()

    held: list[weakref.ref[torch.Tensor]] = []

    def compute(value: int) -> int:
        threading.Timer(0.2, fleet.set_exception, [WorkerStartError("no worker")]).start()
        large = torch.zeros(9)
        held.append(weakref.ref(large))
        try:
            raise torch.OutOfMemoryError("too large for one way")
        except torch.OutOfMemoryError:
            raise torch.OutOfMemoryError("too large") from None

    template = Template(prompt={}, task_node="t", values={})
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        Spread(Squares(fleet), compute, template=template, fleet=fleet).run()
    assert fleet.done() and held[0]() is None


def test_a_cancel_that_the_feeder_hears_of_stops_what_is_computed_here(
    values: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    import comfy.model_management as management

    from comfyfleet.extension.spread.job import Spread

    job = Cancelled()

    def compute(value: Any) -> Any:
        job.first_has_begun.set()
        for _ in range(6000):
            management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        raise AssertionError("nobody has stopped it")

    with pytest.raises(management.InterruptProcessingException):
        Spread(job, compute).run()
    assert not management.processing_interrupted()
