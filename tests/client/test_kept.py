"""Results that another machine has in its cache are not sent again."""

from __future__ import annotations

import numpy as np

from comfyfleet.client.kept import CacheWatch, Kept, Source
from comfyfleet.work import OutputFile, Packed, Result, SavedFile


def prompt(seed: int) -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"color": seed}},
        "2": {"class_type": "FleetReturn", "inputs": {"images": ["1", 0]}},
    }


def given(size: int, saved: int = 0) -> Result:
    values = Packed({}, [np.zeros(size, np.uint8)])
    return Result(values=values, files=(OutputFile(node_id="3", name="a.png", data=bytes(saved)),))


def test_only_what_was_cached_whole_is_found() -> None:
    kept, result = Kept(), given(10)
    kept.keep(prompt(1), result)
    assert kept.find(prompt(1), {"1"}) is result
    assert kept.find(prompt(1), set()) is None  # it was computed anew, and may be another
    assert kept.find(prompt(2), {"1"}) is None


def test_the_oldest_go_first() -> None:
    kept = Kept(kept_bytes=10_000)
    for seed in (1, 2, 3):
        kept.keep(prompt(seed), given(10))
    assert kept.find(prompt(1), {"1"}) is None
    assert kept.find(prompt(2), {"1"}) and kept.find(prompt(3), {"1"})
    kept.keep(prompt(4), given(0, saved=10_001))
    assert kept.find(prompt(4), {"1"}) is None  # larger than all that may be kept


def test_the_watch_hears_cached_nodes_and_no_nonsense() -> None:
    watch = CacheWatch()
    watch(("execution_cached", {"nodes": ["1", 7, None]}))
    watch(("execution_cached", {"nodes": "12"}))
    watch((1, b"preview"))
    assert watch.cached == {"1"}


def test_files_count_as_well() -> None:
    kept = Kept(kept_bytes=10_000)
    file = SavedFile(kind="output", subfolder="", name="a.png", data=bytes(1000), stamp=(1, 1000))
    kept.keep_file("digest a.png", file)
    assert kept.find_file("digest a.png") is file and kept.find_file("other a.png") is None
    kept.keep(prompt(1), given(10))
    kept.keep(prompt(2), given(10))
    assert kept.find_file("digest a.png") is None


def test_a_file_is_known_by_its_node_and_all_that_is_upstream() -> None:
    source, other = Source(prompt(1)), Source(prompt(2))
    assert source.key_of("1", "a.png") == Source(prompt(1)).key_of("1", "a.png")
    assert source.key_of("1", "a.png") not in (other.key_of("1", "a.png"), source.key_of("1", "b"))
    assert source.key_of("expanded", "a.png") == source.key_of(["1"], "a.png") == ""
    source.hear(("execution_cached", {"nodes": ["1"]}))
    assert source.is_cached("1") and not source.is_cached("2") and not source.is_cached(["1"])
