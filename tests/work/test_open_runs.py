"""Runs to which units are added while they run."""

from __future__ import annotations

import pytest

from comfyfleet.work import FinishRun, UnitsAdded
from tests.work.fleet import Fleet, deliver, failure_of, make_units, start


def add(fleet, *units, more, run_id="r"):
    return fleet.handle(UnitsAdded(run_id=run_id, units=units, more=more))


def test_an_open_run_goes_on_when_all_that_it_has_is_done():
    first, second = make_units(2)
    fleet = Fleet("a")
    assert fleet.submit(first, more=True) == [start("a", first)]
    assert fleet.done("a", first) == [deliver("a", first, 0.0)]
    assert add(fleet, second, more=False) == [start("a", second)]
    assert fleet.done("a", second) == [deliver("a", second, 0.0), FinishRun(run_id="r")]


def test_it_ends_when_it_is_closed_with_nothing_left():
    (only,) = make_units(1)
    fleet = Fleet("a")
    fleet.submit(only, more=True)
    fleet.done("a", only)
    assert add(fleet, more=False) == [FinishRun(run_id="r")]


def test_it_does_not_end_before_what_it_has_when_it_is_closed():
    (only,) = make_units(1)
    fleet = Fleet("a")
    fleet.submit(only, more=True)
    assert add(fleet, more=False) == []
    assert fleet.done("a", only) == [deliver("a", only, 0.0), FinishRun(run_id="r")]


def test_what_comes_after_a_cancel_is_nobodys():
    first, second = make_units(2)
    fleet = Fleet("a", "b")
    fleet.submit(first, more=True)
    fleet.cancel("r")
    assert add(fleet, second, more=True) == []


def test_it_fails_when_units_come_and_nobody_is_left():
    first, second = make_units(2)
    fleet = Fleet("a")
    fleet.submit(first, more=True)
    fleet.done("a", first)
    fleet.lose("a")
    assert "a (killed)" in failure_of(add(fleet, second, more=True))


def test_units_that_cannot_be_added_are_named():
    first, second = make_units(2)
    fleet = Fleet("a")
    fleet.submit(first, more=True)
    with pytest.raises(ValueError, match="unit r:0 was added before"):
        add(fleet, first, more=True)
    fleet = Fleet("a")
    fleet.submit(first)
    with pytest.raises(ValueError, match="run r was closed before"):
        add(fleet, second, more=False)
    with pytest.raises(ValueError, match="is not of run x"):
        UnitsAdded(run_id="x", units=(first,), more=False)
