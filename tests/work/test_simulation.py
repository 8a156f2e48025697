"""Whole fleets in simulated time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulation import Scenario, large_fleet, simulate


@pytest.fixture(scope="module")
def large():
    return simulate(large_fleet())


def test_each_of_100_000_units_is_delivered_exactly_once(large):
    assert (large.units, large.delivered) == (100_000, 100_000)
    assert (large.duplicated, large.lost, large.failed_runs) == (0, 0, 0)
    assert large.workers_lost > 100


def test_a_unit_costs_microseconds(large):
    # 60 on a quiet core of 2024; the margin is for a shared one.
    assert large.microseconds_per_unit < 300


def test_a_large_fleet_is_kept_busy(large):
    # Loading 20 s of models, lost workers and stragglers are in the makespan, not in the ideal.
    assert large.makespan_s < 1.3 * large.ideal_s


def test_no_fast_worker_waits_for_one_three_times_slower():
    result = simulate(Scenario(paces=(1.0, 3.0), num_units=64))
    assert result.makespan_s <= 1.08 * result.ideal_s


@pytest.mark.parametrize("num_units", [5, 17, 64])
@pytest.mark.parametrize("slow", [2.0, 10.0, 30.0])
def test_the_end_of_a_run_never_waits_longer_than_one_fast_unit(slow, num_units):
    """Once both speeds are known; the first unit of each worker is a leap in the dark."""
    first = simulate(Scenario(paces=(1.0, slow), num_units=2)).makespan_s
    result = simulate(Scenario(paces=(1.0, slow), num_units=num_units))
    assert result.makespan_s <= max(first, result.ideal_s + 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_trouble_of_any_kind_is_survived(seed):
    scenario = replace(
        large_fleet(seed),
        paces=tuple(1.0 + i % 7 for i in range(40)),
        num_units=2000,
        failure_chance=0.05,
        straggler_chance=0.02,
        loss_chance=0.02,
    )
    result = simulate(scenario)
    assert (result.delivered, result.duplicated, result.failed_runs) == (2000, 0, 0)


def test_the_same_seed_tells_the_same_story():
    scenario = replace(large_fleet(), paces=(1.0, 2.0, 5.0), num_units=300)
    assert simulate(scenario).makespan_s == simulate(scenario).makespan_s
