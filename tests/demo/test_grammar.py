"""The demo's grammar: its prompts, its held-out rule, and a checker that can say no."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

import grammar

SPEC = grammar.Spec("small", "red", "star", "top left", "white")
PARTS = ("size", "colour", "shape", "place", "background")


def test_every_clean_drawing_is_recognised_in_every_part() -> None:
    wrong = []
    for spec in grammar.all_specs():
        verdict = grammar.check(grammar.draw(spec), spec)
        wrong += [(spec, part) for part in PARTS if not getattr(verdict, part)]
    assert wrong == []


def test_jittered_drawings_are_recognised() -> None:
    rng = random.Random(3)
    for spec in rng.sample(grammar.all_specs(), 600):
        assert grammar.check(grammar.draw(spec, rng), spec).good, spec


@pytest.mark.parametrize("asked", grammar.SHAPES)
@pytest.mark.parametrize("size", grammar.SIZES)
def test_another_shape_is_refused(asked: str, size: str) -> None:
    spec = replace(SPEC, shape=asked, size=size)
    for drawn in set(grammar.SHAPES) - {asked}:
        verdict = grammar.check(grammar.draw(replace(spec, shape=drawn)), spec)
        assert verdict.colour and not verdict.shape and not verdict.good, drawn


@pytest.mark.parametrize("background", grammar.BACKGROUNDS)
def test_another_colour_is_refused(background: str) -> None:
    colours = [c for c in grammar.SHAPE_COLOURS if c != background]
    for asked in colours:
        spec = replace(SPEC, colour=asked, background=background)
        for drawn in set(colours) - {asked}:
            verdict = grammar.check(grammar.draw(replace(spec, colour=drawn)), spec)
            assert verdict.shape and not verdict.colour and not verdict.good, (asked, drawn)


@pytest.mark.parametrize(
    "part,value", [("size", "large"), ("place", "bottom"), ("background", "gray")]
)
def test_the_other_parts_are_judged_too(part: str, value: str) -> None:
    verdict = grammar.check(grammar.draw(replace(SPEC, **{part: value})), SPEC)
    assert [p for p in PARTS if not getattr(verdict, p)] == [part]


def test_an_empty_picture_shows_nothing() -> None:
    image = np.full((128, 128, 3), 250, np.uint8)
    seen = grammar.look(image)
    assert (seen.colour, seen.shape, seen.background) == (None, None, "white")
    assert not grammar.check(image, SPEC).good


def test_noise_and_two_shapes_are_no_shape() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not grammar.check(noise, SPEC).good
    other = grammar.draw(replace(SPEC, place="bottom right"))
    both = np.minimum(grammar.draw(SPEC), other)
    assert not grammar.check(both, SPEC).shape


def test_a_wrong_picture_shape_is_told() -> None:
    with pytest.raises(ValueError, match=r"\(64, 64, 3\)"):
        grammar.look(np.zeros((64, 64, 3), np.uint8))


def test_held_out_specs_are_an_eighth_and_never_trained_on() -> None:
    everything, training = grammar.all_specs(), set(grammar.training_specs())
    assert 0.10 < 1 - len(training) / len(everything) < 0.15
    chosen = grammar.held_out_specs(30, seed=1)
    assert len(set(chosen)) == 30 and not training & set(chosen)
    assert chosen == grammar.held_out_specs(30, seed=1)


def test_every_single_word_is_trained_on() -> None:
    said = " ".join(grammar.prompt(s) for s in grammar.training_specs()).replace(",", "")
    words = {grammar.ALIASES.get(word, word) for word in said.split()}
    assert words == set(grammar.WORDS)


def test_prompts_read_as_promised() -> None:
    assert grammar.prompt(SPEC) == "a small red star, top left, on white"
    orange = replace(SPEC, colour="orange")
    assert grammar.prompt(orange, frozenset(["size", "place"])) == "an orange star, on white"


def test_asking_for_too_many_held_out_specs_is_told() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        grammar.held_out_specs(10**6, seed=1)
