"""Faults at random moments: every picture is there in the end, right, and once.

The seeds are always the same here. ``comfyfleet bench chaos`` makes fifty runs with others; with
``--runs 1 --seed SEED`` it makes one of them again.
"""

from __future__ import annotations

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
    ("seed", "kinds"),
    [
        (1, ()),
        (2, ("killed", "slowed", "stopped")),
        (3, ("out of memory", "disk full")),
        (4, ("frozen", "reply lost")),
        (5, ("master killed", "master ended")),
    ],
    ids=lambda value: value if isinstance(value, int) else " or ".join(value) or "undisturbed",
)
def test_no_picture_is_lost_or_saved_twice(
    server: Server, seed: int, kinds: tuple[str, ...]
) -> None:
    plan = draw_plan(seed, kinds)
    print(plan)
    outcome = disturb(server, plan)
    assert outcome.well, f"{plan}: {outcome}\n{server.log()[-3000:]}"
