"""Workers that are paused, restarted or in quarantine: who waits for them, and how long."""

from __future__ import annotations

import pytest

from comfyfleet.work import FinishRun, Heal, Quarantine, Start, WorkerJoined, WorkerPaused
from tests.work.fleet import (
    Fleet,
    deliver,
    failure_of,
    interrupt,
    make_units,
    start,
)


def quarantines(instructions):
    return [i for i in instructions if isinstance(i, Quarantine)]


def starts(instructions):
    return [i for i in instructions if isinstance(i, Start)]


# Paused.


def test_a_paused_worker_finishes_what_it_has_and_takes_nothing_new():
    fleet = Fleet("a")
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.pause("a", "drained by its owner") == []
    assert fleet.state("a") == "busy"
    assert fleet.done("a", u[0], at=1) == [deliver("a", u[0], 1)]
    assert fleet.state("a") == "paused"
    assert fleet.dispatch.reason_of("a") == "drained by its owner"
    assert fleet.resume("a") == [start("a", u[1])]
    assert fleet.dispatch.reason_of("a") == ""


def test_a_run_waits_while_all_workers_are_paused():
    fleet = Fleet("a")
    fleet.pause("a")
    u = make_units(1)
    assert fleet.submit(*u) == []
    assert fleet.dispatch.reason_of("a") == "paused"
    assert fleet.resume("a") == [start("a", u[0])]


def test_pausing_an_unknown_worker_changes_nothing():
    fleet = Fleet()
    assert fleet.pause("x") == fleet.resume("x") == fleet.heal("x") == []
    assert fleet.dispatch.reason_of("x") == ""
    fleet.join("x")
    assert fleet.state("x") == "idle"


@pytest.mark.parametrize("returns", [True, False])
def test_a_worker_that_was_paused_is_so_when_it_joins_again(returns):
    fleet = Fleet("a")
    fleet.pause("a", "no")
    fleet.lose("a", returns=returns)
    assert fleet.dispatch.reason_of("a") == "no"
    fleet.join("a")
    assert fleet.state("a") == "paused"
    fleet.lose("a", returns=returns)
    fleet.resume("a")
    fleet.join("a")
    assert fleet.state("a") == "idle"


def test_a_worker_that_joins_paused_is_waited_for_and_takes_nothing_before_it_is_resumed():
    fleet = Fleet("a")
    u = make_units(1)
    fleet.submit(*u)
    assert fleet.join("late", pause="at work") == []
    assert (fleet.state("late"), fleet.dispatch.reason_of("late")) == ("paused", "at work")
    assert fleet.fail("a", u[0]) == []
    assert fleet.resume("late") == [start("late", u[0])]


def test_the_owners_own_process_may_leave_and_come_again_as_often_as_he_likes():
    """Sharing of the queue is switched on and off: nobody has failed."""
    fleet = Fleet("a", max_worker_failures=1)
    for _ in range(2):
        own = WorkerJoined(worker_id="own", lane="queue", trusted=True, pause="at work")
        assert fleet.handle(own) == []
        assert (fleet.resume("own"), fleet.state("own")) == ([], "idle")
        assert fleet.lose("own") == []


def test_nobody_waits_for_a_fast_worker_that_is_paused():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u = make_units(2)
    assert fleet.submit(*u) == [start("fast", u[0])]
    assert fleet.pause("fast") == [start("slow", u[1])]


def test_a_run_without_anybody_but_a_paused_worker_waits_for_it_when_the_others_are_lost():
    fleet = Fleet("a", "b")
    fleet.pause("b")
    u = make_units(1)
    fleet.submit(*u)
    assert fleet.lose("a") == []
    assert fleet.resume("b") == [start("b", u[0])]


def test_a_paused_worker_may_be_stuck():
    fleet = Fleet("a", interrupt_patience_s=10.0)
    fleet.submit(*make_units(1))
    fleet.pause("a", "no")
    fleet.cancel("r")
    fleet.tick(at=10)
    assert fleet.state("a") == "stuck"
    assert "no answer to an interrupt for 10 s" in fleet.dispatch.reason_of("a")
    fleet.fail("a", make_units(1)[0])
    assert fleet.state("a") == "paused"


# Lost, and coming back.


def test_a_run_waits_for_a_worker_that_is_restarted():
    fleet = Fleet("a")
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.lose("a", returns=True) == []
    assert fleet.dispatch.workers == ()
    assert fleet.submit(*make_units(1, run_id="later")) == []
    assert fleet.join("a") == [start("a", u[0])]


def test_a_restart_that_comes_to_nothing_fails_the_runs_that_waited():
    fleet = Fleet("a")
    fleet.submit(*make_units(1))
    fleet.lose("a", returns=True)
    assert fleet.lose("a", returns=True) == []
    assert "a (killed)" in failure_of(fleet.lose("a"))


def test_a_worker_that_comes_back_for_less_is_waited_for_no_longer():
    fleet = Fleet("a")
    fleet.submit(*make_units(1))
    fleet.lose("a", returns=True)
    assert "a (killed)" in failure_of(fleet.join("a", lane="queue"))


def test_speed_is_known_across_a_restart():
    fleet = Fleet("slow", "fast")
    fleet.measure("x", slow=4.0, fast=1.0)
    fleet.lose("slow", returns=True)
    assert fleet.dispatch.speeds("slow") == pytest.approx({"x": 0.25})
    fleet.join("slow")
    assert fleet.dispatch.speeds("slow") == pytest.approx({"x": 0.25})
    ratio = fleet.dispatch.slowness("slow") / fleet.dispatch.slowness("fast")
    assert ratio == pytest.approx(4.0)
    u = make_units(2, model="x")
    assert fleet.submit(*u) == [start("fast", u[0])]  # the slow one leaves the rest to it


def test_of_an_unknown_worker_no_speed_is_known():
    fleet = Fleet("new")
    for worker in ("new", "unknown"):
        assert fleet.dispatch.speeds(worker) == {}
        assert fleet.dispatch.slowness(worker) is None


# Quarantine.


def broken_fleet(**policy):
    """Worker bad has failed three units in a row, which good then did."""
    fleet = Fleet("good", "bad", **policy)
    u = make_units(50)
    answer = fleet.submit(*u)
    for i in range(3):
        (unit,) = [s.unit for s in starts(answer) if s.worker_id == "bad"]
        answer = fleet.fail("bad", unit)
        if i < 2:
            assert not quarantines(answer)
    return fleet, answer


def next_unit(fleet, worker):
    return fleet.dispatch.find_unit_on(worker)


def test_three_failures_in_a_row_mean_quarantine_then_probation():
    fleet, answer = broken_fleet()
    (quarantine,) = quarantines(answer)
    assert (quarantine.worker_id, quarantine.seconds) == ("bad", 30.0)
    assert "3 times in a row" in quarantine.reason
    assert "out of memory" in quarantine.reason
    assert fleet.state("bad") == "quarantined"
    assert fleet.dispatch.reason_of("bad") == quarantine.reason
    assert fleet.dispatch.next_deadline() == 30.0
    answer = fleet.tick(at=30)
    assert answer[0] == Heal(worker_id="bad")
    assert [s.worker_id for s in starts(answer)] == ["bad"]


def test_failing_on_probation_doubles_the_quarantine_up_to_a_limit():
    fleet, _ = broken_fleet(max_quarantine_s=100.0)
    terms = []
    for _ in range(3):
        fleet.tick(at=fleet.dispatch.next_deadline())
        (quarantine,) = quarantines(fleet.fail("bad", next_unit(fleet, "bad")))
        terms.append(quarantine.seconds)
        assert "again after quarantine" in quarantine.reason
    assert terms == [60.0, 100.0, 100.0]


def test_a_success_on_probation_clears_it():
    fleet, _ = broken_fleet()
    fleet.tick(at=30)
    fleet.done("bad", next_unit(fleet, "bad"), at=31)
    for _ in range(2):
        assert not quarantines(fleet.fail("bad", next_unit(fleet, "bad")))
    (quarantine,) = quarantines(fleet.fail("bad", next_unit(fleet, "bad")))
    assert quarantine.seconds == 30.0


def test_a_success_between_failures_starts_the_count_anew():
    fleet = Fleet("good", "bad")
    fleet.submit(*make_units(50))
    for _ in range(3):
        for _ in range(2):
            assert not quarantines(fleet.fail("bad", next_unit(fleet, "bad")))
        fleet.done("bad", next_unit(fleet, "bad"))


def test_the_owner_may_end_a_quarantine():
    fleet, _ = broken_fleet()
    answer = fleet.heal("bad", at=1)
    assert answer[0] == Heal(worker_id="bad")
    assert [s.worker_id for s in starts(answer)] == ["bad"]
    (quarantine,) = quarantines(fleet.fail("bad", next_unit(fleet, "bad")))
    assert quarantine.seconds == 60.0


def test_a_bad_workflow_brings_nobody_into_quarantine():
    fleet = Fleet("a", "b")
    for i in range(10):
        (unit,) = make_units(1, run_id=f"r{i}")
        (begun,) = starts(fleet.submit(unit))
        (again,) = starts(fleet.fail(begun.worker_id, unit))
        assert "failed on 2 workers" in failure_of(fleet.fail(again.worker_id, unit))
    assert fleet.state("a") == fleet.state("b") == "idle"


def test_a_worker_is_acquitted_when_the_unit_fails_elsewhere_too():
    fleet = Fleet("a", "b", max_worker_failures=1, max_failures=3)
    fleet.join("c")
    fleet.pause("c")
    (unit,) = make_units(1)
    fleet.submit(unit)
    assert quarantines(fleet.fail("a", unit))
    assert fleet.fail("b", unit) == [Heal(worker_id="a")]
    assert fleet.state("a") == fleet.state("b") == "idle"


def test_interrupted_attempts_are_no_failures():
    fleet = Fleet("a", max_worker_failures=1)
    for i in range(3):
        (unit,) = make_units(1, run_id=f"r{i}")
        assert starts(fleet.submit(unit))
        assert interrupt("a", unit) in fleet.cancel(f"r{i}")
        assert fleet.fail("a", unit) == []


def test_a_run_waits_for_the_healing_of_its_only_worker():
    fleet = Fleet("a", max_worker_failures=1)
    assert quarantines(fleet.lose("a", returns=True))
    fleet.join("a")
    later = make_units(1, run_id="later")
    assert fleet.submit(*later) == []
    assert fleet.tick(at=30) == [Heal(worker_id="a"), start("a", later[0])]


def test_a_crash_loop_means_quarantine_and_outlives_restarts():
    fleet = Fleet("a")
    for _ in range(2):
        assert fleet.lose("a", returns=True) == []
        fleet.join("a")
    (quarantine,) = fleet.lose("a", returns=True)
    assert "lost (killed)" in quarantine.reason
    fleet.join("a", at=5)
    assert fleet.state("a") == "quarantined"
    u = make_units(1)
    assert fleet.submit(*u) == []
    assert fleet.tick(at=30) == [Heal(worker_id="a"), start("a", u[0])]
    (quarantine,) = fleet.lose("a", returns=True)
    assert quarantine.seconds == 60.0
    assert fleet.tick(at=90) == [Heal(worker_id="a")]  # one may try to start it again


def test_a_worker_that_dies_while_it_starts_is_in_a_crash_loop_too():
    fleet = Fleet("a")
    fleet.lose("a", returns=True)
    fleet.lose("a", returns=True)
    assert quarantines(fleet.lose("a", returns=True))


def test_to_give_up_a_restart_is_no_crash():
    fleet = Fleet("a", max_worker_failures=2)
    assert fleet.lose("a", returns=True) == []
    assert fleet.lose("a") == []


def test_a_unit_that_kills_workers_brings_none_into_quarantine():
    fleet = Fleet("a", "b", max_worker_failures=1, max_losses=2)
    (unit,) = make_units(1)
    fleet.submit(unit)
    assert quarantines(fleet.lose("a", returns=True))
    answer = fleet.lose("b", returns=True)
    assert answer[0] == Heal(worker_id="a")
    assert "kill workers" in failure_of(answer)
    assert not quarantines(answer)


def test_a_worker_of_one_run_is_never_in_quarantine():
    fleet = Fleet("a", max_worker_failures=1)
    fleet.join("local", only_run="r")
    fleet.pause("a")
    (unit,) = make_units(1)
    assert fleet.submit(unit) == [start("local", unit)]
    assert not fleet.fail("local", unit)
    assert fleet.state("local") == "idle"


def test_a_quarantine_that_ends_finds_the_worker_paused():
    fleet, _ = broken_fleet()
    fleet.pause("bad", "no")
    assert fleet.state("bad") == "paused"
    assert fleet.tick(at=30) == [Heal(worker_id="bad")]
    assert fleet.dispatch.reason_of("bad") == "no"


def test_paused_and_quarantined_workers_of_a_run_leave_with_it():
    fleet = Fleet("a")
    fleet.join("local", only_run="r")
    fleet.pause("local")
    (unit,) = make_units(1)
    fleet.submit(unit)
    assert fleet.done("a", unit)[-1] == FinishRun(run_id="r")
    assert fleet.dispatch.workers == ("a",)
    assert fleet.handle(WorkerPaused(worker_id="local")) == []


def test_bad_workflows_bring_the_only_worker_not_into_quarantine():
    fleet = Fleet("a")
    for number in range(5):
        u = make_units(1, run_id=f"r{number}")
        assert fleet.submit(*u) == [start("a", u[0])]
        assert not quarantines(fleet.fail("a", u[0]))
    assert fleet.state("a") == "idle"
