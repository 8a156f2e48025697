"""Which degrees a step gets, for every combination that a small machine can meet."""

from __future__ import annotations

import math
from itertools import product

import pytest

from comfyfleet.errors import CannotSplit, InputError
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.strategy import AXES, Step, Trial, Wish, choose_dims, expected_speedup

RANKS, CONDITIONINGS, SAMPLES = range(1, 9), range(1, 4), range(1, 5)
WHY = "no plan for its tokens yet."


def step_of(conditionings: int = 1, samples: int = 1, splittable: bool = True) -> Step:
    why = "" if splittable else WHY
    return Step(conditionings=conditionings, samples=samples, unsplittable=why)


STEPS = [step_of(*entry) for entry in product(CONDITIONINGS, SAMPLES, (True, False))]


def rounds(items: int, degree: int) -> int:
    return math.ceil(items / degree)


def possible(wish: Wish, num_ranks: int, step: Step) -> list[ParallelDims]:
    """All degrees that the wish, the step and the ranks allow, without a ring of our own."""
    axes = AXES[wish.strategy]
    whole = "sequence" not in axes or bool(step.unsplittable)
    found = []
    for ulysses, ring, cfg, batch in product(RANKS, (1, 2, 3), CONDITIONINGS, SAMPLES):
        if ulysses * ring * cfg * batch > num_ranks:
            continue
        dims = ParallelDims(ulysses=ulysses, ring=ring, cfg=cfg, batch=batch)
        given = wish.ulysses in (0, ulysses) and ring == (wish.ring or 1)
        wanted = dims.sequence == 1 if whole else given
        useful = cfg <= step.conditionings and batch <= step.samples
        allowed = (cfg == 1 or "cfg" in axes) and (batch == 1 or "batch" in axes)
        if wanted and useful and allowed:
            found.append(dims)
    return found


def seconds(dims: ParallelDims, step: Step) -> float:
    """Of a step that takes one device 1 second for each conditioning of each sample."""
    return rounds(step.conditionings, dims.cfg) * rounds(step.samples, dims.batch) / dims.sequence


def order(dims: ParallelDims, step: Step) -> tuple[float, ...]:
    """Smaller is better: time, then most of cfg, most of sequence, least devices."""
    cfg = rounds(step.conditionings, dims.cfg)
    return seconds(dims, step), cfg, -dims.sequence, dims.size


@pytest.mark.parametrize("strategy", AXES)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_the_fastest_is_chosen_with_ties_to_cfg_then_sequence(strategy: str, num_ranks: int):
    for step in STEPS:
        wish = Wish(strategy=strategy)
        best = min(possible(wish, num_ranks, step), key=lambda dims: order(dims, step))
        try:
            found = choose_dims(wish, num_ranks, step)
        except CannotSplit:
            assert best.size == 1 < num_ranks and strategy != "auto", step
        else:
            assert order(found, step) == order(best, step), step
            assert found in possible(wish, num_ranks, step), step


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize(("ulysses", "ring"), [(2, 0), (0, 2), (2, 2), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("strategy", ["auto", "sequence", "cfg + sequence"])
def test_degrees_that_were_asked_for_are_kept(
    strategy: str, ulysses: int, ring: int, num_ranks: int
):
    wish = Wish(strategy=strategy, ulysses=ulysses, ring=ring)
    for step in (step for step in STEPS if not step.unsplittable):
        options = possible(wish, num_ranks, step)
        if not options:
            with pytest.raises(CannotSplit, match=f"more than the {num_ranks} devices"):
                choose_dims(wish, num_ranks, step)
            continue
        found = choose_dims(wish, num_ranks, step)
        assert order(found, step) == min(order(dims, step) for dims in options)
        assert found.ring == (ring or 1) and ulysses in (0, found.ulysses)


@pytest.mark.parametrize(
    ("strategy", "num_ranks", "step", "told"),
    [
        ("auto", 2, step_of(2), "cfg 2"),
        ("auto", 4, step_of(2), "ulysses 2 x cfg 2"),
        ("auto", 3, step_of(2), "ulysses 3"),
        ("auto", 3, step_of(2, splittable=False), "cfg 2"),
        ("auto", 3, step_of(3), "cfg 3"),
        ("auto", 2, step_of(1, 2), "ulysses 2"),
        ("auto", 2, step_of(1, 2, splittable=False), "batch 2"),
        ("auto", 8, step_of(2, 4, splittable=False), "cfg 2 x batch 4"),
        ("auto", 8, step_of(1, 1, splittable=False), "one device"),
        ("auto", 3, step_of(1, 4, splittable=False), "batch 2"),
        ("batch", 4, step_of(2, 3), "batch 3"),
        ("cfg", 8, step_of(2, 3), "cfg 2"),
        ("cfg", 3, step_of(4), "cfg 2"),
        ("cfg + sequence", 6, step_of(2, 3), "ulysses 3 x cfg 2"),
        ("cfg + sequence", 2, step_of(2, splittable=False), "cfg 2"),
        ("sequence", 5, step_of(2, 2), "ulysses 5"),
    ],
)
def test_what_is_chosen(strategy: str, num_ranks: int, step: Step, told: str):
    assert str(choose_dims(Wish(strategy=strategy), num_ranks, step)) == told


@pytest.mark.parametrize(
    ("strategy", "step", "told"),
    [
        ("cfg", step_of(1, 4), "strategy cfg: this step has one conditioning only."),
        ("batch", step_of(2, 1), "strategy batch: this step has one picture only."),
        ("sequence", step_of(2, 4, splittable=False), WHY),
        ("cfg + sequence", step_of(1, 4, splittable=False), WHY),
    ],
)
def test_where_nothing_can_be_split_it_says_why(strategy: str, step: Step, told: str):
    with pytest.raises(CannotSplit) as caught:
        choose_dims(Wish(strategy=strategy), 2, step)
    assert str(caught.value) == told


@pytest.mark.parametrize("strategy", AXES)
def test_one_device_needs_no_reason(strategy: str):
    for step in STEPS:
        assert choose_dims(Wish(strategy=strategy), 1, step).size == 1


def test_the_expected_speedup_counts_rounds():
    step = step_of(3, 4)
    for dims in (ParallelDims(), ParallelDims(cfg=2), ParallelDims(ulysses=2, ring=2, batch=3)):
        alone = seconds(ParallelDims(), step)
        assert expected_speedup(dims, step) == pytest.approx(alone / seconds(dims, step))


@pytest.mark.parametrize("strategy", AXES)
def test_wishes_that_can_be_met(strategy: str):
    Wish(strategy=strategy).check(1)
    Wish(strategy=strategy, ulysses=1, ring=1).check(1)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (
            Wish(strategy="fast"),  # type: ignore[arg-type]
            "strategy is 'fast'; choose one of auto, cfg, batch, sequence, cfg + sequence.",
        ),
        (Wish(ulysses=-1), "ulysses is -1; give a degree from 1, or 0 for any."),
        (Wish(ring=-2), "ring is -2; give a degree from 1, or 0 for any."),
        (
            Wish(strategy="cfg", ulysses=2),
            "ulysses is 2, but strategy 'cfg' does not split the sequence; choose auto, sequence "
            "or cfg + sequence, or set ulysses to 0.",
        ),
        (
            Wish(strategy="batch", ring=2),
            "ring is 2, but strategy 'batch' does not split the sequence; choose auto, sequence "
            "or cfg + sequence, or set ring to 0.",
        ),
        (
            Wish(ulysses=2, ring=3),
            "ulysses 2 x ring 3 x cfg 1 x batch 1 needs 6 devices; there are 4. Make the product "
            "of the degrees 4 or less.",
        ),
    ],
)
def test_wishes_that_cannot_be_met(wish: Wish, told: str):
    with pytest.raises(InputError) as caught:
        wish.check(4)
    assert str(caught.value) == told


def test_a_trial_warms_up_then_measures_both_ways():
    trial = Trial()
    assert trial.parallel and trial.speedup is None
    trial.note(True, 100.0)
    assert trial.parallel and trial.speedup is None
    trial.note(True, 1.0)
    assert not trial.parallel and trial.speedup is None
    trial.note(False, 1.5)
    assert trial.speedup == 1.5 and trial.parallel


def decided(parallel: float, alone: float) -> Trial:
    trial = Trial()
    for way, seconds in ((True, parallel), (True, parallel), (False, alone)):
        trial.note(way, seconds)
    return trial


@pytest.mark.parametrize(("alone", "parallel"), [(2.0, True), (1.0, False), (0.5, False)])
def test_a_trial_decides_for_what_is_faster(alone: float, parallel: bool):
    trial = decided(1.0, alone)
    assert trial.speedup == alone and trial.parallel is parallel


def test_a_trial_keeps_the_best_of_what_it_goes_on_to_measure():
    trial = decided(1.0, 1.5)
    trial.note(True, 50.0)  # something else was busy
    assert trial.speedup == 1.5
    trial.note(True, 0.5)
    assert trial.speedup == 3.0 and trial.parallel


def test_a_trial_tries_all_devices_again_now_and_then():
    trial, steps = decided(1.0, 0.5), 0
    while not trial.parallel:
        trial.note(False, 0.5)
        steps += 1
        assert steps < 100
    assert steps > 10 and trial.speedup == 0.5
    trial.note(True, 1.0)
    assert not trial.parallel
    trial.note(True, 0.25)
    assert trial.parallel and trial.speedup == 2.0
