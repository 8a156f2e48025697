"""Where each rank stands: coordinates, peers, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import InputError
from comfyfleet.parallel.dims import ParallelDims

AXES = ("ulysses", "ring", "cfg", "batch")

degrees = st.tuples(*[st.integers(1, 3)] * 4)
dims = degrees.map(lambda found: ParallelDims(**dict(zip(AXES, found, strict=True))))
axes = st.sets(st.sampled_from(AXES)).map(tuple)


@given(dims)
def test_coordinates_and_ranks_are_each_other_s_inverse(dims: ParallelDims):
    places = [dims.coordinates(rank) for rank in range(dims.size)]
    assert [dims.rank(place) for place in places] == list(range(dims.size))
    assert len({tuple(place.values()) for place in places}) == dims.size
    assert all(0 <= place[axis] < dims.degrees[axis] for place in places for axis in AXES)


@given(dims, axes)
def test_peers_partition_the_world(dims: ParallelDims, axes: tuple[str, ...]):
    groups = [dims.peers(rank, axes) for rank in range(dims.size)]
    assert all(rank in group for rank, group in enumerate(groups))
    assert all(groups[other] == group for group in groups for other in group)
    assert all(list(group) == sorted(group) for group in groups)
    size = math.prod(dims.degrees[axis] for axis in axes)
    assert {len(group) for group in groups} == {size}
    assert len(set(groups)) * size == dims.size


def test_the_axes_lie_from_ulysses_to_batch():
    dims = ParallelDims(ulysses=2, ring=3, cfg=2, batch=2)
    assert tuple(dims.degrees) == AXES
    steps = [dims.rank({axis: 1}) for axis in AXES]
    assert steps == [1, 2, 6, 12]
    assert dims.peers(0, ("ulysses",)) == (0, 1)
    assert dims.peers(1, ("ring",)) == (1, 3, 5)
    assert dims.peers(7, ("ulysses", "ring")) == (6, 7, 8, 9, 10, 11)
    assert dims.peers(1, ("cfg", "batch")) == (1, 7, 13, 19)


def test_sizes():
    dims = ParallelDims(ulysses=2, ring=3, batch=2)
    assert (dims.sequence, dims.size) == (6, 12)
    assert ParallelDims().size == 1


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("degree", [0, -1])
def test_a_degree_below_one_is_refused_by_name(axis: str, degree: int):
    with pytest.raises(InputError, match=f"{axis} is {degree}; a degree is a whole number from 1"):
        ParallelDims(**{axis: degree})


def test_too_many_are_refused_with_the_product_and_what_there_is():
    dims = ParallelDims(ulysses=2, cfg=3)
    dims.check(6)
    with pytest.raises(InputError) as caught:
        dims.check(5)
    assert str(caught.value) == (
        "ulysses 2 x ring 1 x cfg 3 x batch 1 needs 6 devices; there are 5. Make the product of "
        "the degrees 5 or less."
    )


def test_they_are_told_without_those_of_one():
    assert str(ParallelDims(ulysses=2, batch=3)) == "ulysses 2 x batch 3"
    assert str(ParallelDims()) == "one device"
