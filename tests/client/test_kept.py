"""Results that another machine has in its cache are not sent again."""

from __future__ import annotations

import numpy as np

from comfyfleet.client.kept import CacheWatch, Kept
from comfyfleet.work import Packed


def prompt(seed: int) -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"color": seed}},
        "2": {"class_type": "FleetReturn", "inputs": {"images": ["1", 0]}},
    }


def packed(size: int) -> Packed:
    return Packed({}, [np.zeros(size, np.uint8)])


def test_only_what_was_cached_whole_is_found() -> None:
    kept, result = Kept(), packed(10)
    kept.keep(prompt(1), result)
    assert kept.find(prompt(1), {"1"}) is result
    assert kept.find(prompt(1), set()) is None  # it was computed anew, and may be another
    assert kept.find(prompt(2), {"1"}) is None


def test_the_oldest_go_first() -> None:
    kept = Kept(kept_bytes=10_000)
    for seed in (1, 2, 3):
        kept.keep(prompt(seed), packed(10))
    assert kept.find(prompt(1), {"1"}) is None
    assert kept.find(prompt(2), {"1"}) and kept.find(prompt(3), {"1"})
    kept.keep(prompt(4), packed(10_001))
    assert kept.find(prompt(4), {"1"}) is None  # larger than all that may be kept


def test_the_watch_hears_cached_nodes_and_no_nonsense() -> None:
    watch = CacheWatch()
    watch(("execution_cached", {"nodes": ["1", 7, None]}))
    watch(("execution_cached", {"nodes": "12"}))
    watch((1, b"preview"))
    assert watch.cached == {"1"}
