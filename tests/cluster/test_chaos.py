"""Faults at random moments: every picture is there in the end, right, and once.

Each run prints its seed; ``comfyfleet bench chaos --runs 1 --seed SEED`` repeats it, and
``comfyfleet bench chaos`` makes fifty runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from benchmarks.chaos import disturb, draw_plan
from benchmarks.server import Server, comfyui_server

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(nothing_left: None) -> Iterator[Server]:
    """A master that computes nothing itself, and two workers."""
    with comfyui_server(workers="cpu,cpu") as running:
        running.share()
        yield running
    assert not running.processes()


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("killed", "slowed", "stopped"),
        ("out of memory", "disk full"),
        ("frozen", "reply lost"),
        ("master killed", "master ended"),
    ],
    ids=lambda kinds: " or ".join(kinds) or "undisturbed",
)
def test_no_picture_is_lost_or_saved_twice(server: Server, kinds: tuple[str, ...]) -> None:
    plan = draw_plan(random.SystemRandom().randrange(10**6), kinds)
    print(plan)
    outcome = disturb(server, plan)
    assert outcome.well, f"{plan}: {outcome}\n{server.log()[-3000:]}"
