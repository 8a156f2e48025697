from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import InputError
from comfyfleet.graph import (
    find_splits,
    part_of_slices,
    slice_bounds,
    slices_nodes,
    stand_in,
    vary,
)
from comfyfleet.graph.split import MAX_CHOSEN_SIZE, PARTS_PER_DEVICE
from tests.graph.prompts import node


@given(st.integers(0, 5000), st.integers(0, 100), st.integers(1, 64))
def test_slices_are_the_whole_in_order(total: int, size: int, devices: int) -> None:
    bounds = slice_bounds(total, size, shares=0, devices=devices)
    assert [item for start, stop in bounds for item in range(start, stop)] == list(range(total))
    lengths = [stop - start for start, stop in bounds]
    if size:
        assert max(lengths) <= size and all(each == size for each in lengths[:-1])
    elif devices > 1:
        assert max(lengths) <= MAX_CHOSEN_SIZE and lengths == sorted(lengths, reverse=True)
        # Nobody waits for more than one item: the last for all devices have no more.
        assert max(lengths[1 - PARTS_PER_DEVICE * devices :]) <= 1
        assert lengths[0] <= max(1, -(-total // (PARTS_PER_DEVICE * devices)))
    else:
        assert lengths == [total]


@given(st.integers(1, 500), st.data())
def test_shares_decide_where_no_size_is_given(total: int, data: st.DataObject) -> None:
    shares = data.draw(st.integers(1, total))
    assert len(slice_bounds(total, 0, shares=shares, devices=3)) == shares


@pytest.mark.parametrize(
    ("total", "size", "shares", "says"),
    [(10, 4, 2, "0 or 3"), (3, 0, 4, "there are 3 items"), (3, ["1", 0], 0, "is linked")],
)
def test_what_does_not_fit_is_refused(total: int, size: Any, shares: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        slice_bounds(total, size, shares=shares, devices=2)


def test_a_split_upstream_of_another_collector_is_not_found() -> None:
    prompt = {
        "1": node("LoadImage", image="a.png"),
        "2": node("FleetSplit", batch=["1", 0], size=0),
        "3": node("FleetCollector", images=["2", 0]),
        "4": node("FleetSplit", batch=["3", 0], size=0),
        "5": node("Sharpen", image=["4", 0], first=["1", 0]),
    }
    assert find_splits(prompt, ["5"]) == {"4": ("3", 0)}


def test_each_share_sees_its_own_slice() -> None:
    prompt = {
        "1": node("FleetSplit", batch=["0", 0], size=1),
        "2": node("A", x=["1", 0], i=["1", 1]),
    }
    digests = [["a0", "i0", "c"], ["a1", "i1", "c"]]
    sliced = stand_in(prompt, slices_nodes("1", digests))
    for share, own in enumerate(digests):
        varied = vary(sliced, share)
        inputs = varied["2"]["inputs"]
        assert [varied[inputs[name][0]] for name in ("x", "i")] == [
            node("FleetShipped", digest=own[0]),
            node("FleetShipped", digest=own[1]),
        ]


def test_a_part_of_a_share_is_made_of_its_slices() -> None:
    prompt = {
        "1": node("FleetSplit", batch=["0", 0], size=4),
        "2": node("A", x=["1", 0], n=["1", 2]),
    }
    digests = [["a0", "i0", "c"], ["a1", "i1", "c"]]
    sliced = stand_in(prompt, slices_nodes("1", digests))
    part = vary(part_of_slices(sliced, 2, 4), 1)
    for name, slot in (("x", 0), ("n", 2)):
        inputs = part[part["2"]["inputs"][name][0]]["inputs"]
        assert part[inputs["value"][0]] == node("FleetShipped", digest=digests[1][slot])
        assert (inputs["slot"], inputs["first"], inputs["last"]) == (slot, 2, 4)
