"""Threads that take turns: who computes when, what they inherit, and how they fail."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest
import torch

from comfyfleet.parallel.turns import Turns

TIMEOUT_S = 60


class Log:
    """What happened, in order; and a check that only one computes at a time."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._computing = threading.Lock()

    def compute(self, event: str) -> None:
        assert self._computing.acquire(blocking=False), f"{event} while another one computes"
        self.events.append(event)
        self._computing.release()


def test_results_come_in_the_order_of_the_works():
    assert Turns().run([lambda i=i: i for i in range(4)]) == [0, 1, 2, 3]
    assert Turns().run([lambda: "alone"]) == ["alone"]


def test_the_first_computes_when_all_others_wait():
    turns, log, answers = Turns(), Log(), [threading.Event() for _ in range(3)]

    def work(i: int) -> int:
        log.compute(f"{i} begins")
        if i:
            with turns.waiting():
                assert answers[i].wait(TIMEOUT_S)
        else:
            for answer in answers:
                answer.set()
        log.compute(f"{i} ends")
        return i

    assert turns.run([lambda i=i: work(i) for i in range(3)]) == [0, 1, 2]
    assert log.events[:4] == ["1 begins", "2 begins", "0 begins", "0 ends"]
    assert sorted(log.events[4:]) == ["1 ends", "2 ends"]


def test_the_first_runs_in_the_thread_that_asked():
    threads = Turns().run([threading.current_thread] * 3)
    assert threads[0] is threading.current_thread()
    assert [thread.name for thread in threads[1:]] == ["conditioning-1", "conditioning-2"]
    assert not any(thread.is_alive() for thread in threads[1:])


def test_waiting_overlaps():
    """Each waits until all wait: it would never end if one of them held the lock."""
    turns, all_wait = Turns(), threading.Barrier(3)

    def work() -> None:
        with turns.waiting():
            all_wait.wait(TIMEOUT_S)

    turns.run([work] * 3)


def test_computing_does_not_overlap():
    turns, log = Turns(), Log()

    def work(i: int) -> None:
        for step in range(20):
            log.compute(f"{i}: {step}")
            with turns.waiting():
                pass

    turns.run([lambda i=i: work(i) for i in range(4)])
    for i in range(4):
        mine = [event for event in log.events if event.startswith(f"{i}:")]
        assert mine == [f"{i}: {step}" for step in range(20)]


def test_the_first_error_is_raised_when_all_have_ended():
    turns, ended = Turns(), []

    def fails(i: int) -> None:
        ended.append(i)
        raise ValueError(f"work {i}")

    works: list[Callable[[], object]] = [
        lambda: ended.append(0),
        lambda: fails(1),
        lambda: fails(2),
    ]
    with pytest.raises(ValueError, match="work 1"):
        turns.run(works)
    assert ended == [1, 2, 0]


def test_an_error_while_waiting_is_raised():
    turns = Turns()

    def work() -> None:
        with turns.waiting():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.run([lambda: None, work])
    with pytest.raises(KeyboardInterrupt):
        turns.run([work, lambda: None])
    assert turns.run([lambda: 1, lambda: 2]) == [1, 2]  # the lock is free again


def test_waiting_outside_of_run_does_nothing():
    turns = Turns()
    with turns.waiting():
        assert turns.run([lambda: 1]) == [1]
    with turns.waiting():
        pass


def test_context_variables_are_inherited_and_kept_apart():
    variable = contextvars.ContextVar[str]("variable", default="unset")
    variable.set("ours")

    def work(i: int) -> str:
        before = variable.get()
        variable.set(f"that of {i}")
        return before

    assert Turns().run([lambda i=i: work(i) for i in range(3)]) == ["ours"] * 3
    assert variable.get() == "that of 0"


def modes() -> tuple[bool, bool]:
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def test_modes_of_autograd_are_inherited():
    for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
        with mode:
            assert Turns().run([modes] * 3) == [modes()] * 3
    with torch.inference_mode(), torch.inference_mode(False):
        assert Turns().run([modes] * 2) == [modes()] * 2
