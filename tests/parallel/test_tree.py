"""Nested values to a text and tensors, and back."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, namedtuple
from uuid import UUID

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.parallel.tree import Unsendable, decode, encode, leaves, sendable, spell

TENSORS = [torch.zeros(()), torch.arange(6).view(2, 3), torch.ones(4, 2)[:, 1], torch.zeros(0)]
Pair = namedtuple("Pair", ["a", "b"])


class Level(enum.IntEnum):
    LOW = 1


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.uuids(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")]),
    st.lists(st.integers(0, 9), max_size=3).map(torch.Size),
)
keys = st.recursive(scalars, lambda child: st.tuples(child, child), max_leaves=4)
trees = st.recursive(
    scalars | st.sampled_from(TENSORS),
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(keys, child, max_size=3),
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    """Whether two trees are equal in values and types, tensors by identity and NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one is other
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def tensors_of(tree) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return tensors_of(list(tree.values()))
    if isinstance(tree, (list, tuple)):
        return [tensor for item in tree for tensor in tensors_of(item)]
    return []


@given(trees)
def test_a_tree_comes_back(tree):
    spec, tensors = encode(tree)
    assert same(decode(spec, tensors), tree)
    assert sendable(tree)


@given(trees)
def test_tensors_are_listed_once_each_in_order(tree):
    _, tensors = encode(tree)
    inside = tensors_of(tree)
    assert [id(t) for t in tensors] == list(dict.fromkeys(map(id, inside)))
    assert [id(t) for _, t in leaves(tree)] == [id(t) for t in tensors]


def test_other_tensors_take_the_place_of_the_original_ones():
    spec, tensors = encode({"x": TENSORS[0], "again": [TENSORS[1], TENSORS[0]]})
    assert len(tensors) == 2
    assert decode(spec, ["first", "second"]) == {"x": "first", "again": ["second", "first"]}


def test_the_text_is_json_and_tells_nothing_of_the_tensors():
    small, _ = encode({"x": torch.zeros(1)})
    large, _ = encode({"x": torch.zeros(1000, dtype=torch.int64)})
    assert small == large
    assert json.loads(small) == ["dict", ["x", ["tensor", 0]]]


def test_a_text_with_another_kind_is_refused():
    with pytest.raises(KeyError):
        decode(b'["os.system", "true"]', [])


def test_leaves_have_paths():
    tree = {
        "args": (TENSORS[0],),
        "kwargs": {"control": {"input": [None, TENSORS[1]]}, ("double_block", 3): TENSORS[2]},
    }
    assert [path for path, _ in leaves(tree)] == [
        "args[0]",
        'kwargs["control"]["input"][1]',
        "kwargs[('double_block', 3)]",
    ]


@pytest.mark.parametrize(
    ("path", "spelled"),
    [((), "the value"), ((0, "a"), '[0]["a"]'), (("a b",), '["a b"]'), ((UUID(int=0),), None)],
)
def test_paths_are_spelled_as_python_would(path, spelled):
    assert spell(path) == (spelled or f"[{UUID(int=0)!r}]")


@pytest.mark.parametrize(
    "value",
    [
        print,
        object(),
        {1, 2},
        1j,
        Pair(1, 2),
        OrderedDict(),
        Level.LOW,
        numpy.float64(1),
        numpy.zeros(2),
        torch.nn.Parameter(torch.zeros(2)),
        torch.float32.__class__,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_exactly_is_refused_with_its_path_and_type(value):
    tree = {"args": (), "kwargs": {"transformer_options": {"my_patch": value}}}
    assert not sendable(tree)
    with pytest.raises(Unsendable) as caught:
        encode(tree)
    assert caught.value.path == 'kwargs["transformer_options"]["my_patch"]'
    assert caught.value.type is type(value)
    assert caught.value.path in str(caught.value) and type(value).__name__ in str(caught.value)
    with pytest.raises(Unsendable):
        list(leaves(tree))


@pytest.mark.parametrize("key", [TENSORS[0], (1, TENSORS[0]), frozenset(), print])
def test_keys_that_cannot_be_sent_are_refused(key):
    with pytest.raises(Unsendable, match=r"kwargs\["):
        encode({"kwargs": {key: 1}})
