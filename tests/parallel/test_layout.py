"""Which tokens are where: shards partition a tensor, and joining them gives it back."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from comfyfleet.parallel.layout import Joint, Stream, split_stream

weights = st.lists(st.floats(0.0, 4.0), min_size=1, max_size=4).filter(any)


@st.composite
def joints(draw: st.DrawFn) -> Joint:
    """Streams of any length, those of few tokens whole, over one to four ranks."""
    shares = draw(weights)
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    return Joint(tuple(split_stream(length, shares) for length in lengths))


def num_ranks(joint: Joint) -> int:
    return len(joint.streams[0].sizes)


def tokens(joint: Joint) -> Tensor:
    """(2, tokens, 3), where token i holds its canonical position."""
    return torch.arange(joint.length).view(1, -1, 1).expand(2, -1, 3)


@given(st.integers(0, 50), weights)
def test_a_stream_is_split_without_empty_shards_or_whole(length: int, weights: list[float]):
    stream = split_stream(length, weights)
    full = torch.arange(length)
    shards = [stream.shard(full, 0, rank) for rank in range(len(weights))]
    assert stream.length == length
    assert [len(shard) for shard in shards] == list(stream.sizes)
    if stream.whole:
        assert all(torch.equal(shard, full) for shard in shards)
    else:
        assert torch.equal(torch.cat(shards), full) and all(stream.sizes)
    for rank, shard in enumerate(shards):
        assert stream.elsewhere(rank) == length - len(shard)


def test_shards_follow_the_weights_and_the_dim():
    stream = split_stream(8, [3.0, 1.0])
    assert stream == Stream((6, 2))
    full = torch.arange(16).view(2, 8)
    assert stream.shard(full, 1, 1).tolist() == [[6, 7], [14, 15]]


def test_a_stream_with_less_tokens_than_ranks_is_whole():
    assert split_stream(2, [1.0, 1.0, 1.0]) == Stream((2, 2, 2), whole=True)
    assert split_stream(9, [1.0, 0.0]) == Stream((9, 9), whole=True)
    assert split_stream(0, [1.0, 1.0]).length == 0


def test_a_kept_stream_is_what_this_rank_has():
    kept = Stream((3, 2)).kept(1)
    assert kept == Stream((2, 2), whole=True)
    assert (kept.length, kept.elsewhere(1)) == (2, 0)


def split_positions(joint: Joint) -> list[int]:
    """Canonical positions of the tokens of streams that are not whole."""
    found, start = [], 0
    for stream in joint.streams:
        found += [] if stream.whole else range(start, start + stream.length)
        start += stream.length
    return found


@given(joints())
def test_shards_hold_every_split_token_once_and_all_others_everywhere(joint: Joint):
    shards = [joint.shard(tokens(joint), 1, rank) for rank in range(num_ranks(joint))]
    assert [shard.shape[1] for shard in shards] == [
        joint.local(rank) for rank in range(num_ranks(joint))
    ]
    count = Counter(position for shard in shards for position in shard[0, :, 0].tolist())
    split = set(split_positions(joint))
    assert count == {p: 1 if p in split else num_ranks(joint) for p in range(joint.length)}


@given(joints())
def test_joining_what_travelled_gives_the_canonical_order(joint: Joint):
    full = tokens(joint)
    shards = [joint.shard(full, 1, rank) for rank in range(num_ranks(joint))]
    travelled = [joint.travelling(shard, 1, rank) for rank, shard in enumerate(shards)]
    assert [part.shape[1] for part in travelled] == [
        joint.split().local(rank) for rank in range(num_ranks(joint))
    ]
    for rank, shard in enumerate(shards):
        assert torch.equal(joint.join(travelled, shard, 1, rank), full)


@given(joints())
def test_segments_tell_where_a_rank_s_tokens_are(joint: Joint):
    for rank in range(num_ranks(joint)):
        positions = [p for start, size in joint.segments(rank) for p in range(start, start + size)]
        assert positions == joint.shard(tokens(joint), 1, rank)[0, :, 0].tolist()


@given(joints(), st.data())
def test_positions_are_those_of_the_layout_of_some_ranks(joint: Joint, data: st.DataObject):
    first = data.draw(st.integers(0, num_ranks(joint) - 1))
    some = range(first, data.draw(st.integers(first + 1, num_ranks(joint))))
    block, full = joint.of_ranks(some), tokens(joint)
    shards = [joint.shard(full, 1, rank) for rank in some]
    travelled = [block.travelling(shard, 1, i) for i, shard in enumerate(shards)]
    joined = block.join(travelled, shards[0], 1, 0)[0, :, 0]
    assert torch.equal(joint.positions(some, split_only=False), joined)
    split = joined.index_select(0, block.rows(split_only=True))
    assert torch.equal(joint.positions(some, split_only=True), split)


@given(joints())
def test_blocks_of_ranks_hold_every_key_once(joint: Joint):
    """As a ring does it: streams that all ranks have count in the first block."""
    blocks = [
        joint.positions(range(rank, rank + 1), split_only=rank > 0)
        for rank in range(num_ranks(joint))
    ]
    assert sorted(torch.cat(blocks).tolist()) == list(range(joint.length))


@given(joints())
def test_rows_are_all_positions_or_those_of_the_split_streams(joint: Joint):
    assert joint.rows(split_only=False).tolist() == list(range(joint.length))
    assert joint.rows(split_only=True).tolist() == split_positions(joint)
