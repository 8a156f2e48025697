"""Units of several items for which no worker has the memory: smaller ones take their place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfyfleet.work import Deliver, FinishRun, Halved, RunSubmitted, Start, Unit
from tests.work.fleet import (
    Fleet,
    deliver,
    discard,
    failure_of,
    halve,
    interrupt,
    make_units,
    start,
)


def slices(num: int, items: int = 4) -> tuple[Unit, ...]:
    return tuple(replace(unit, items=items) for unit in make_units(num))


def submit(fleet: Fleet, *units: Unit):
    return fleet.submit(*units, halve=halve)


def test_the_halves_run_when_nobody_has_the_memory_even_when_it_is_freed():
    fleet = Fleet("a", "b")
    (u,) = slices(1)
    submit(fleet, u)
    assert fleet.run_short("a", u) == [start("b", u)]
    assert fleet.run_short("b", u) == [start("a", u, free_first=True)]
    low, high = halve(u, 1)
    told = fleet.run_short("a", u)
    assert told == [Halved(unit=u, halves=(low, high)), start("a", low), start("b", high)]
    assert fleet.done("b", high, at=1) == [deliver("b", high, 1)]
    assert fleet.done("a", low, at=2)[-1] == FinishRun(run_id="r")


def test_a_half_may_be_halved_until_it_is_one_item():
    fleet = Fleet("a")
    (u,) = slices(1, items=3)
    submit(fleet, u)
    fleet.run_short("a", u)
    low, high = halve(u, 1)
    assert (low.items, high.items) == (1, 2)
    assert fleet.run_short("a", u)[1:] == [start("a", low)]
    assert fleet.done("a", low, at=1)[-1] == start("a", high)
    fleet.run_short("a", high)
    one, other = halve(high, 3)
    assert fleet.run_short("a", high) == [Halved(unit=high, halves=(one, other)), start("a", one)]
    fleet.run_short("a", one)
    assert "unit r:3 ran out of memory on 1 worker: a" in failure_of(fleet.run_short("a", one))


def test_what_nobody_had_the_memory_for_is_not_tried_everywhere_again():
    first, second = slices(2)
    fleet = Fleet("a")
    submit(fleet, first, second)
    fleet.run_short("a", first)
    low, high = halve(first, 2)
    fleet.run_short("a", first)
    fleet.done("a", low, at=1)
    assert fleet.join("b") == [start("b", second)]
    fleet.done("a", high, at=2)
    told = fleet.run_short("b", second)  # not given to a: it had too little for as many items
    assert told[0] == Halved(unit=second, halves=halve(second, 4))


def test_units_of_one_item_and_runs_that_cannot_be_cut_fail_as_before():
    for unit, how in ((slices(1)[0], {}), (slices(1, items=1)[0], {"halve": halve})):
        fleet = Fleet("a")
        fleet.submit(unit, **how)
        fleet.run_short("a", unit)
        assert "after all memory was freed" in failure_of(fleet.run_short("a", unit))


def test_nothing_is_halved_when_no_worker_is_left():
    fleet = Fleet("a", "b")
    (u,) = slices(1)
    submit(fleet, u)
    fleet.run_short("a", u)
    fleet.lose("a")
    assert "ran out of memory on 1 worker: a" in failure_of(fleet.lose("b"))


def test_the_late_result_of_a_halved_unit_is_nobodys():
    fleet = Fleet("a", "b", min_deadline_s=1.0, hard_factor=2.0, interrupt_patience_s=1000.0)
    fleet.measure(a=1.0, b=1.0)
    (u,) = slices(1)
    submit(fleet, u)
    deadline = fleet.dispatch.next_deadline()
    assert fleet.tick(at=deadline) == [start("b", u)]
    assert fleet.tick(at=fleet.dispatch.next_deadline()) == [interrupt("a", u)]
    fleet.run_short("b", u)
    told = fleet.run_short("b", u)
    assert isinstance(told[0], Halved)
    assert fleet.done("a", u)[0] == discard("a", u)


def test_an_open_run_cannot_be_halved():
    with pytest.raises(ValueError, match="open run"):
        RunSubmitted(run_id="r", units=(), more=True, halve=halve)


def test_all_items_are_delivered_once_in_order():
    """Workers of different memory: one takes 2 items, the other 5."""
    fleet, most = Fleet("a", "b"), {"a": 2, "b": 5}
    todo = [each for each in submit(fleet, *slices(4, items=16))]
    delivered: list[Unit] = []
    while todo:
        each = todo.pop(0)
        if isinstance(each, Deliver):
            delivered.append(each.unit)
        if isinstance(each, Start):
            fits = each.unit.items <= most[each.worker_id]
            todo += (fleet.done if fits else fleet.run_short)(each.worker_id, each.unit)
    assert sum(unit.items for unit in delivered) == 64
    assert not fleet.dispatch.runs
