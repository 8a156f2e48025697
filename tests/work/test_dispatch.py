"""The rules of dispatch, one by one: events in, instructions compared."""

from __future__ import annotations

from itertools import pairwise

import pytest

from comfyfleet.work import (
    CancelRun,
    Dispatch,
    FinishRun,
    InvalidEventError,
    Policy,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
    WorkerReturned,
)
from tests.work.fleet import (
    Fleet,
    deliver,
    discard,
    failure_of,
    interrupt,
    make_units,
    start,
    unit_of,
)

# Units are pulled.


def test_each_idle_worker_pulls_one_unit_by_index():
    fleet = Fleet("a", "b")
    u = make_units(3)
    assert fleet.submit(*u) == [start("a", u[0]), start("b", u[1])]
    assert fleet.done("b", u[1], at=2) == [deliver("b", u[1], 2), start("b", u[2])]
    assert fleet.done("a", u[0], at=3) == [deliver("a", u[0], 3)]
    assert fleet.done("b", u[2], at=4) == [deliver("b", u[2], 2), FinishRun(run_id="r")]
    assert fleet.dispatch.runs == ()


def test_runs_are_served_first_come_first_served():
    fleet = Fleet("a")
    first, second = make_units(2, run_id="first"), make_units(1, run_id="second")
    fleet.submit(*first)
    fleet.submit(*second)
    assert start("a", first[1]) in fleet.done("a", first[0])
    assert start("a", second[0]) in fleet.done("a", first[1])


def test_a_worker_that_joins_pulls_at_once():
    fleet = Fleet("a")
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.join("b") == [start("b", u[1])]


def test_a_run_without_units_is_finished_at_once():
    fleet = Fleet()
    assert fleet.handle(RunSubmitted(run_id="r", units=())) == [FinishRun(run_id="r")]


# The model that a worker holds.


def test_a_worker_takes_a_unit_of_the_model_that_it_holds():
    fleet = Fleet("a")
    u = [unit_of(index=0, model="x"), unit_of(index=1, model="y"), unit_of(index=2, model="x")]
    assert fleet.submit(*u) == [start("a", u[0])]
    assert fleet.done("a", u[0])[1:] == [start("a", u[2])]
    assert fleet.done("a", u[2])[1:] == [start("a", u[1])]  # never idle for want of its model


def test_model_preference_does_not_jump_the_line_of_runs():
    fleet = Fleet("a")
    u = [unit_of("r1", 0, "x"), unit_of("r1", 1, "y"), unit_of("r2", 0, "x")]
    fleet.submit(*u[:2])
    fleet.submit(u[2])
    assert fleet.done("a", u[0])[1:] == [start("a", u[1])]


def test_holders_get_a_unit_first_then_the_fastest():
    fleet = Fleet("slow", "fast")
    fleet.measure("x", slow=2.0, fast=1.0)
    held = unit_of("y", 0, "y")
    fleet.submit(unit_of("other", 0, "z"))  # taken by the fastest
    assert fleet.dispatch.find_unit_on("fast") == unit_of("other", 0, "z")
    fleet.submit(held)
    fleet.done("slow", held, at=fleet.now + 2)
    fleet.done("fast", unit_of("other", 0, "z"), at=fleet.now)
    assert fleet.submit(unit_of("y2", 0, "y")) == [start("slow", unit_of("y2", 0, "y"))]
    assert fleet.submit(unit_of("z2", 0, "q")) == [start("fast", unit_of("z2", 0, "q"))]


# The tail rule.


def test_a_slow_worker_leaves_the_last_units_to_a_fast_one():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u, t = make_units(4), fleet.now
    assert fleet.submit(*u) == [start("fast", u[0])]
    for i in range(3):
        assert start("fast", u[i + 1]) in fleet.done("fast", u[i], at=t + i + 1)
        assert fleet.dispatch.state_of("slow") == "idle"
    assert FinishRun(run_id="r") in fleet.done("fast", u[3], at=t + 4)


def test_a_slow_worker_takes_a_unit_that_it_ends_first():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=3.0, fast=1.0)
    u = make_units(4)
    assert fleet.submit(*u) == [start("fast", u[0]), start("slow", u[1])]


def test_a_worker_never_measured_does_not_wait():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    fleet.join("new")
    u = make_units(2)
    assert fleet.submit(*u) == [start("fast", u[0]), start("new", u[1])]


def test_a_waiting_worker_takes_the_unit_when_the_fast_one_is_late():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u, t = make_units(2), fleet.now
    assert fleet.submit(*u) == [start("fast", u[0])]
    answers = []
    while not answers:
        answers = fleet.tick(at=fleet.dispatch.next_deadline())
    assert answers == [start("slow", u[1])]
    assert fleet.now < t + 15


def test_a_waiting_worker_takes_the_unit_when_the_fast_one_is_lost():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.lose("fast") == [start("slow", u[0])]


def test_a_worker_that_waits_for_one_run_works_for_the_next():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u, other = make_units(2), make_units(50, run_id="other")
    assert fleet.submit(*u) == [start("fast", u[0])]
    assert fleet.submit(*other) == [start("slow", other[0])]


def test_a_unit_that_failed_on_the_fast_worker_is_not_left_to_it():
    fleet = Fleet("slow", "fast")
    fleet.measure(slow=10.0, fast=1.0)
    u = make_units(2)
    assert fleet.submit(*u) == [start("fast", u[0])]
    assert fleet.fail("fast", u[0]) == [start("fast", u[1]), start("slow", u[0])]


# Retry elsewhere.


def test_a_failed_unit_goes_to_another_worker_first_of_all():
    fleet = Fleet("a", "b")
    u = make_units(3)
    fleet.submit(*u)
    assert fleet.fail("a", u[0]) == [start("a", u[2])]
    assert start("b", u[0]) in fleet.done("b", u[1])


def test_a_unit_that_failed_on_two_workers_fails_the_run_in_their_words():
    fleet = Fleet("a", "b", "c")
    u = make_units(1)
    fleet.submit(*u)
    assert fleet.fail("a", u[0]) == [start("b", u[0])]
    message = failure_of(fleet.fail("b", u[0]))
    assert "failed on 2 workers" in message
    for part in ("worker a", "worker b", "node 5 (VAE)", "out of memory", "Traceback: boom"):
        assert part in message


def test_the_run_fails_when_nobody_else_is_left_to_try():
    fleet = Fleet("a")
    u = make_units(1)
    fleet.submit(*u)
    message = failure_of(fleet.fail("a", u[0]))
    assert "no other worker" in message
    assert "Traceback: boom" in message


def test_a_busy_worker_counts_as_one_that_will_try():
    fleet = Fleet("a", "b")
    u = make_units(2)
    fleet.submit(*u)
    assert fleet.fail("a", u[0]) == []
    assert fleet.dispatch.num_pending == 1
    assert failure_of(fleet.lose("b")).startswith("unit r:0 failed on 1 worker")


def test_a_failed_run_interrupts_what_still_runs_of_it():
    fleet = Fleet("a", "b", max_failures=1)
    u = make_units(5)
    fleet.submit(*u)
    answer = fleet.fail("a", u[0])
    assert answer[0] == interrupt("b", u[1])
    assert "out of memory" in failure_of(answer)
    assert fleet.done("b", u[1]) == [discard("b", u[1])]
    assert fleet.dispatch.state_of("b") == "idle"


def test_thousands_of_failures_of_one_broken_worker_fail_no_run():
    fleet = Fleet("good", "broken")
    # No validation: it would take minutes. And no quarantine, which would save the test's point.
    fleet.dispatch = Dispatch(Policy(max_worker_failures=10_000))
    fleet.join("good")
    fleet.join("broken")
    u = make_units(2000)
    answer = fleet.submit(*u)
    while broken := [i.unit for i in answer if getattr(i, "worker_id", "") == "broken"]:
        answer = fleet.fail("broken", broken[0])
    unit, ended = u[0], False
    while not ended:
        answer = fleet.done("good", unit)
        ended = FinishRun(run_id="r") in answer
        unit = next((i.unit for i in answer if isinstance(i, Start)), None)


# Lost workers.


def test_a_lost_workers_unit_goes_to_the_front():
    fleet = Fleet("a", "b")
    u = make_units(4)
    fleet.submit(*u)
    assert fleet.lose("a") == []
    assert fleet.done("b", u[1])[1:] == [start("b", u[0])]


def test_a_unit_that_kills_workers_fails_the_run():
    fleet = Fleet("w0", "w1", "w2", "w3", "w4")
    u = make_units(1)
    fleet.submit(*u)
    for i in range(3):
        assert fleet.lose(f"w{i}") == [start(f"w{i + 1}", u[0])]
    message = failure_of(fleet.lose("w3"))
    assert "seems to kill workers" in message
    assert "w0 (killed)" in message


def test_the_run_fails_when_all_workers_are_lost_and_says_which():
    fleet = Fleet("a", "b")
    u = make_units(4)
    fleet.submit(*u)
    assert fleet.lose("a") == []
    message = failure_of(fleet.lose("b"))
    assert "a (killed), b (killed)" in message


def test_a_run_is_refused_when_there_is_no_worker():
    fleet = Fleet()
    assert "no worker" in failure_of(fleet.submit(*make_units(3)))
    assert fleet.join("a") == []


def test_the_late_word_of_a_lost_worker_is_discarded():
    fleet = Fleet("a", "b")
    u = make_units(1)
    fleet.submit(*u)
    fleet.lose("a")
    assert fleet.done("a", u[0]) == [discard("a", u[0])]
    assert fleet.fail("a", u[0]) == []
    assert fleet.lose("a") == []
    assert deliver("b", u[0], 0) in fleet.done("b", u[0])


# Deadlines.


def overdue_fleet():
    """Workers a and b know to need 10 s; a holds r:0 and is overdue after 30 s."""
    fleet = Fleet("a", "b", min_deadline_s=1.0)
    fleet.measure(a=10.0, b=10.0)
    (unit,) = make_units(1)
    assert fleet.submit(unit) == [start("a", unit)]
    return fleet, unit, fleet.now


def test_an_overdue_unit_is_started_again_and_the_first_result_wins():
    fleet, unit, t = overdue_fleet()
    assert fleet.dispatch.next_deadline() == t + 30
    assert fleet.tick(at=t + 29) == []
    assert fleet.tick(at=t + 30) == [start("b", unit)]
    assert fleet.done("b", unit, at=t + 40) == [
        deliver("b", unit, 10),
        interrupt("a", unit),
        FinishRun(run_id="r"),
    ]
    assert fleet.dispatch.state_of("a") == "busy"
    assert fleet.done("a", unit, at=t + 41) == [discard("a", unit)]
    assert fleet.dispatch.state_of("a") == "idle"


def test_the_overdue_worker_may_still_win():
    fleet, unit, t = overdue_fleet()
    fleet.tick(at=t + 30)
    answer = fleet.done("a", unit, at=t + 35)
    assert answer == [deliver("a", unit, 35), interrupt("b", unit), FinishRun(run_id="r")]
    assert fleet.fail("b", unit) == []
    assert fleet.dispatch.state_of("b") == "idle"


def test_progress_extends_the_deadline():
    fleet, unit, t = overdue_fleet()
    assert fleet.progress("a", unit, 0.5, at=t + 25) == []
    assert fleet.tick(at=t + 39) == []  # 5 s more expected, three times that allowed
    assert fleet.tick(at=t + 40) == [start("b", unit)]


def test_the_pace_of_progress_tells_how_long_it_takes():
    fleet = Fleet("a", "b", min_deadline_s=1.0)
    (unit,) = make_units(1)
    fleet.submit(unit)
    fleet.progress("a", unit, 0.1, at=100)  # loading the model took long, and says nothing
    assert fleet.dispatch.next_deadline() == Policy().first_patience_s
    fleet.progress("a", unit, 0.2, at=101)
    assert fleet.dispatch.next_deadline() == pytest.approx(101 + 10 * 8)


@pytest.mark.parametrize("fraction", [float("nan"), -1.0, 0.0, 1e-9])
def test_progress_that_is_none_is_ignored(fraction):
    fleet, unit, t = overdue_fleet()
    fleet.progress("a", unit, fraction, at=t + 25)
    assert fleet.tick(at=t + 30) == [start("b", unit)]


def test_progress_of_an_overdue_unit_takes_back_the_offer():
    fleet, unit, t = overdue_fleet()
    (other,) = make_units(1, run_id="other")
    fleet.submit(other, at=t + 5)
    fleet.tick(at=t + 30)
    assert fleet.dispatch.num_pending == 1
    fleet.progress("a", unit, 0.5, at=t + 31)
    assert fleet.dispatch.num_pending == 0


def test_without_any_measurement_there_is_much_patience():
    fleet = Fleet("a")
    fleet.submit(*make_units(1))
    assert fleet.dispatch.next_deadline() == Policy().first_patience_s


def test_speed_guessed_from_other_workers_has_more_patience():
    fleet = Fleet("a", min_deadline_s=1.0)
    fleet.measure(a=10.0)
    fleet.join("new")
    u, t = make_units(40), fleet.now
    fleet.submit(*u)
    fleet.lose("a")
    assert fleet.dispatch.next_deadline() == t + 100


def test_a_hopeless_worker_is_stuck_and_its_unit_runs_elsewhere():
    fleet, unit, t = overdue_fleet()
    long = make_units(1, run_id="long", cost=1000.0)
    fleet.submit(*long)
    fleet.tick(at=t + 30)
    assert fleet.tick(at=t + 300) == [interrupt("a", unit)]
    assert fleet.dispatch.state_of("a") == "stuck"
    assert start("b", unit) in fleet.done("b", long[0], at=t + 301)
    assert fleet.submit(*make_units(1, run_id="next")) == []
    answer = fleet.fail("a", unit, at=t + 302)  # the answer to the interrupt: it lives
    assert answer == [start("a", make_units(1, run_id="next")[0])]


def test_the_answer_to_an_interrupt_is_no_failure():
    fleet, unit, t = overdue_fleet()
    fleet.submit(*make_units(1, run_id="long", cost=1000.0))
    fleet.tick(at=t + 30)
    fleet.tick(at=t + 300)
    fleet.lose("b", at=t + 301)  # the unit is pending, and a is stuck
    assert fleet.dispatch.runs == ()

    fleet, unit, t = overdue_fleet()
    fleet.submit(*make_units(1, run_id="long", cost=1000.0))
    fleet.tick(at=t + 30)
    fleet.tick(at=t + 300)
    assert fleet.fail("a", unit) == [start("a", unit)]  # it answers, so it may try again


def test_the_late_result_of_a_stuck_worker_is_still_good():
    fleet, unit, t = overdue_fleet()
    fleet.submit(*make_units(1, run_id="long", cost=1000.0))
    fleet.tick(at=t + 30)
    fleet.tick(at=t + 300)
    assert fleet.done("a", unit, at=t + 301) == [deliver("a", unit, 301), FinishRun(run_id="r")]


def test_a_hopeless_worker_fails_the_run_when_nobody_else_is_there():
    fleet, unit, t = overdue_fleet()
    fleet.lose("b")
    assert fleet.tick(at=t + 30) == []
    answer = fleet.tick(at=t + 300)
    assert "no answer for 300 s" in failure_of(answer)
    assert interrupt("a", unit) in answer
    assert fleet.dispatch.state_of("a") == "stuck"
    assert "stuck, not answering: a" in failure_of(fleet.submit(*make_units(1, run_id="next")))
    fleet.fail("a", unit)
    assert fleet.submit(*make_units(1, run_id="third")) != []


def test_a_worker_that_ignores_an_interrupt_is_stuck():
    fleet = Fleet("a", interrupt_patience_s=100.0)
    fleet.submit(*make_units(1))
    fleet.cancel("r")
    fleet.tick(at=99)
    assert fleet.dispatch.state_of("a") == "busy"
    fleet.tick(at=100)
    assert fleet.dispatch.state_of("a") == "stuck"


# Lanes and priorities.


def test_a_worker_with_a_lane_serves_only_runs_of_that_lane():
    fleet = Fleet("a")
    fleet.join("master", lane="queue")
    u, queued = make_units(2), make_units(2, run_id="queued")
    assert fleet.submit(*u) == [start("a", u[0])]
    assert fleet.submit(*queued, lane="queue") == [start("master", queued[0])]
    assert fleet.done("a", u[0])[1:] == [start("a", u[1])]
    assert fleet.done("a", u[1])[-1] == start("a", queued[1])  # it serves every lane


def test_a_worker_of_another_lane_cannot_save_a_run():
    fleet = Fleet()
    fleet.join("master", lane="queue")
    assert "no worker" in failure_of(fleet.submit(*make_units(1)))
    u = make_units(1, run_id="queued")
    assert fleet.submit(*u, lane="queue") == [start("master", u[0])]
    assert fleet.done("master", u[0])[-1] == FinishRun(run_id="queued")
    assert fleet.dispatch.workers == ("master",)


def test_runs_of_lower_priority_number_are_served_first():
    fleet = Fleet("a")
    u = {name: make_units(1, run_id=name) for name in ("now", "later", "first", "also")}
    fleet.submit(*u["now"])
    fleet.submit(*u["later"], priority=5.0)
    fleet.submit(*u["first"], priority=-2.0)
    fleet.submit(*u["also"], priority=-2.0)
    order = ["now", "first", "also", "later"]
    for name, following in pairwise(order):
        assert fleet.done("a", u[name][0])[-1] == start("a", u[following][0])


def test_a_worker_is_for_a_run_or_for_a_lane():
    with pytest.raises(ValueError, match=r"worker m is for run r and for lane 'queue'"):
        WorkerJoined(worker_id="m", only_run="r", lane="queue")


@pytest.mark.parametrize("priority", [float("nan"), float("inf")])
def test_a_priority_is_a_number(priority):
    with pytest.raises(ValueError, match="priority is"):
        RunSubmitted(run_id="r", units=(), priority=priority)


# Workers of a single run, and cancelling.


def test_a_worker_of_one_run_serves_no_other_and_leaves_with_it():
    fleet = Fleet("a")
    fleet.join("master", only_run="r")
    other, u = make_units(2, run_id="other"), make_units(1)
    assert fleet.submit(*other) == [start("a", other[0])]
    assert fleet.submit(*u) == [start("master", u[0])]
    assert fleet.done("master", u[0]) == [deliver("master", u[0], 0), FinishRun(run_id="r")]
    assert fleet.dispatch.workers == ("a",)
    assert fleet.join("master", only_run="r") == []  # it came too late
    assert fleet.dispatch.workers == ("a",)


def test_a_worker_of_another_run_cannot_save_a_run():
    fleet = Fleet("a")
    fleet.join("master", only_run="other")
    fleet.submit(*make_units(1))
    assert "a (killed)" in failure_of(fleet.lose("a"))


def test_cancel_interrupts_and_discards():
    fleet = Fleet("a")
    u, after = make_units(3), make_units(1, run_id="after")
    fleet.submit(*u)
    assert fleet.cancel("r") == [interrupt("a", u[0]), CancelRun(run_id="r", reason="user")]
    assert fleet.cancel("r") == []
    assert fleet.submit(*after) == []  # busy until it says so
    assert fleet.done("a", u[0]) == [discard("a", u[0]), start("a", after[0])]


def test_an_interrupted_worker_may_report_a_failure():
    fleet = Fleet("a")
    u, after = make_units(1), make_units(1, run_id="after")
    fleet.submit(*u)
    fleet.cancel("r")
    fleet.submit(*after)
    assert fleet.fail("a", u[0]) == [start("a", after[0])]


# Faults of the engine.


def test_unknown_events_are_refused():
    with pytest.raises(TypeError, match="unknown event 'hello'"):
        Dispatch().handle("hello", 0.0)


def test_a_report_of_a_unit_never_given_tells_its_story():
    fleet = Fleet("a", "b")
    u = make_units(1)
    fleet.submit(*u)
    with pytest.raises(InvalidEventError, match=r"worker b .* r:0 .* at 0.000 was started on a"):
        fleet.done("b", u[0])


def test_joining_twice_and_submitting_twice_are_refused():
    fleet = Fleet("a")
    with pytest.raises(InvalidEventError, match="a joined twice"):
        fleet.join("a")
    fleet.submit(*make_units(1))
    with pytest.raises(ValueError, match="run r was submitted before"):
        fleet.submit(*make_units(1))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (make_units(1, run_id="x"), "x:0 is not of run r"),
        (make_units(1) * 2, "index 0 occurs twice"),
        (make_units(1, cost=-1.0), "cost is -1.0"),
        (make_units(1, cost=float("nan")), "cost is nan"),
    ],
)
def test_impossible_runs_are_refused(units, message):
    with pytest.raises(ValueError, match=message):
        RunSubmitted(run_id="r", units=units)


@pytest.mark.parametrize("policy", [{"max_failures": 0}, {"smoothing": 2}, {"hard_factor": 1}])
def test_impossible_policies_are_refused(policy):
    (name,) = policy
    with pytest.raises(ValueError, match=f"{name} is"):
        Policy(**policy)


def test_time_that_runs_backwards_is_taken_as_now():
    fleet = Fleet("a")
    u = make_units(1)
    fleet.submit(*u, at=10.0)
    assert fleet.done("a", u[0], at=9.0)[0] == deliver("a", u[0], 0)


def test_a_worker_that_hangs_on_its_first_unit_is_noticed_when_others_finish_theirs() -> None:
    """Nothing was known of such units when it began: its deadline comes with the first result."""
    dispatch = Dispatch(validate=True)
    for name in ("a", "b"):
        dispatch.handle(WorkerJoined(worker_id=name), 0.0)
    units = tuple(Unit(run_id="r", index=i, prompt={}) for i in range(2))
    dispatch.handle(RunSubmitted(run_id="r", units=units), 0.0)
    dispatch.handle(UnitDone(worker_id="b", unit_id="r:1"), 1.0)
    deadline = dispatch.next_deadline()
    assert deadline is not None and deadline <= 60.0
    started = dispatch.handle(Tick(), deadline)
    assert [(each.worker_id, each.unit.index) for each in started] == [("b", 0)]


def test_a_lent_worker_takes_no_unit_until_it_is_returned():
    dispatch = Dispatch(validate=True)
    dispatch.handle(WorkerJoined(worker_id="a"), 0.0)
    dispatch.handle(WorkerLent(worker_id="a"), 1.0)
    assert dispatch.state_of("a") == "lent"
    unit = unit_of("run", 0)
    assert dispatch.handle(RunSubmitted(run_id="run", units=(unit,)), 2.0) == []
    started = dispatch.handle(WorkerReturned(worker_id="a"), 3.0)
    assert started == [Start(worker_id="a", unit=unit)]


def test_a_lent_worker_may_be_lost():
    dispatch = Dispatch(validate=True)
    dispatch.handle(WorkerJoined(worker_id="a"), 0.0)
    dispatch.handle(WorkerLent(worker_id="a"), 1.0)
    dispatch.handle(WorkerLost(worker_id="a", reason="killed"), 2.0)
    dispatch.handle(WorkerReturned(worker_id="a"), 3.0)
    assert dispatch.workers == ()
