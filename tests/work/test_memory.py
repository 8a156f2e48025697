"""Units that need more memory than a worker has, and models that are loaded one by one."""

from __future__ import annotations

import pytest

from comfyfleet.work import FinishRun, Policy
from tests.work.fleet import Fleet, failure_of, make_units, start, unit_of

# Out of memory.


def test_a_unit_that_needs_more_memory_goes_to_every_other_worker_first():
    fleet = Fleet("a", "b", "c")
    u = unit_of()
    fleet.submit(u)
    assert fleet.run_short("a", u) == [start("b", u)]
    assert fleet.run_short("b", u) == [start("c", u)]
    assert fleet.run_short("c", u) == [start("a", u, free_first=True)]
    message = failure_of(fleet.run_short("a", u))
    assert "ran out of memory on 3 workers: a, b, c" in message
    assert "after all memory was freed" in message
    assert "CUDA out of memory" in message


def test_the_last_resort_may_succeed():
    fleet = Fleet("a")
    u = unit_of()
    fleet.submit(u)
    assert fleet.run_short("a", u) == [start("a", u, free_first=True)]
    assert fleet.done("a", u, at=1)[-1] == FinishRun(run_id="r")


def test_running_out_of_memory_is_nobodys_fault():
    fleet = Fleet("a", "b", max_worker_failures=1, max_failures=1)
    u = unit_of()
    fleet.submit(u)
    assert fleet.run_short("a", u) == [start("b", u)]
    assert fleet.state("a") == "idle"


def test_a_paused_worker_is_waited_for_before_the_last_resort():
    fleet = Fleet("a", "b")
    fleet.pause("b")
    u = unit_of()
    fleet.submit(u)
    assert fleet.run_short("a", u) == []
    assert fleet.resume("b") == [start("b", u)]


def test_a_node_of_the_master_waits_for_no_paused_worker():
    """Who waits for it has no word of whom it waits for."""
    fleet = Fleet("a")
    fleet.pause("a")
    u = unit_of()
    fleet.submit(u)
    assert fleet.join("local", only_run="r") == [start("local", u)]
    assert fleet.run_short("local", u) == [start("local", u, free_first=True)]
    assert "ran out of memory on 1 worker: local" in failure_of(fleet.run_short("local", u))


def test_a_node_of_the_master_waits_for_a_worker_in_quarantine():
    fleet = Fleet("a", "b", max_worker_failures=1, max_failures=2)
    other = unit_of(run_id="other")
    fleet.submit(other)
    fleet.fail("a", other)
    fleet.done("b", other, at=1)
    fleet.lose("b")
    u = unit_of()
    fleet.submit(u)
    assert fleet.join("local", only_run="r") == [start("local", u)]
    assert fleet.run_short("local", u) == []
    assert start("a", u) in fleet.heal("a")


def test_the_last_resort_comes_when_the_only_other_worker_is_lost():
    fleet = Fleet("a", "b")
    fleet.pause("b")
    u = unit_of()
    fleet.submit(u)
    fleet.run_short("a", u)
    assert fleet.lose("b") == [start("a", u, free_first=True)]


def test_the_next_one_is_the_last_resort_when_the_first_is_lost():
    fleet = Fleet("a", "b")
    u = unit_of()
    fleet.submit(u)
    fleet.run_short("a", u)
    fleet.lose("a")
    assert fleet.run_short("b", u) == [start("b", u, free_first=True)]


def test_a_lost_last_resort_is_handed_on():
    fleet = Fleet("a", "b")
    u = unit_of()
    fleet.submit(u)
    fleet.run_short("a", u)
    assert fleet.run_short("b", u) == [start("a", u, free_first=True)]
    assert fleet.lose("a") == [start("b", u, free_first=True)]
    assert "ran out of memory on 2 workers" in failure_of(fleet.run_short("b", u))


def test_a_worker_that_joins_before_the_last_resort_has_begun_takes_the_unit():
    fleet = Fleet("a")
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.run_short("a", u[0]) == [start("a", u[0], free_first=True)]
    fleet.lose("a", returns=True)
    assert fleet.join("b") == [start("b", u[0])]


def test_a_failure_at_the_second_try_ends_the_run_with_both():
    fleet = Fleet("a")
    u = unit_of()
    fleet.submit(u)
    fleet.run_short("a", u)
    message = failure_of(fleet.fail("a", u))
    assert "ran out of memory on 1 worker: a" in message
    assert "Traceback: boom" in message


# Loading models one after another.


def test_loads_are_staggered():
    fleet = Fleet("a", "b", "c", stagger_s=10.0)
    u = make_units(9, model="x")
    assert fleet.submit(*u) == [start("a", u[0])]
    assert fleet.dispatch.next_deadline() == 10.0
    assert fleet.tick(at=9.5) == []
    assert fleet.done("a", u[0])[1:] == [start("a", u[1])]  # it holds the model
    assert fleet.tick(at=10) == [start("b", u[2])]
    assert fleet.dispatch.next_deadline() == 20.0
    assert fleet.tick(at=20) == [start("c", u[3])]


def test_workers_of_another_run_are_warm_while_a_load_waits():
    fleet = Fleet("a", "b", stagger_s=10.0)
    one, other = make_units(1, model="x"), make_units(1, run_id="y", model="y")
    fleet.submit(*one)
    fleet.done("a", one[0])
    assert fleet.submit(*other) == []
    again = make_units(1, run_id="again", model="x")
    assert fleet.submit(*again) == [start("a", again[0])]
    assert fleet.tick(at=10) == [start("b", other[0])]


def test_the_policy_may_change_while_all_runs():
    fleet = Fleet("a", "b", stagger_s=10.0)
    u = make_units(3, model="x")
    fleet.submit(*u)
    assert fleet.dispatch.set_policy(Policy(), 1.0) == [start("b", u[1])]
    assert fleet.dispatch.set_policy(Policy(stagger_s=5.0), 2.0) == []
    fleet.join("c", at=3)
    assert fleet.state("c") == "idle"
    assert fleet.tick(at=6) == [start("c", u[2])]


@pytest.mark.parametrize(
    "policy",
    [
        {"stagger_s": -1.0},
        {"stagger_s": float("nan")},
        {"max_quarantine_s": 1.0},
        {"max_worker_failures": 0},
    ],
)
def test_impossible_numbers_are_refused(policy):
    with pytest.raises(ValueError, match=f"{next(iter(policy))} is"):
        Policy(**policy)
