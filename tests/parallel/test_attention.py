"""Attention over ranks against attention on one: any heads, streams, weights, masks and meshes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.attention import Request, sequence_attention
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.layout import Joint, split_stream
from comfyfleet.parallel.mesh import SequenceMesh
from tests.parallel.attention import optimized_attention, plain
from tests.parallel.ranks import Ranks

DIM = 4
MESHES = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (1, 4), (2, 2)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One attention. ``lengths`` are those of the streams that ask, ``keys`` of those asked.

    ``mask`` names the dims of (batch, heads, queries, keys) that a mask has; "" is no mask.
    """

    mesh: tuple[int, int] = (2, 1)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    lengths: tuple[int, ...] = (9,)
    keys: tuple[int, ...] = ()
    groups: int = 2
    repeats: int = 1
    batch: int = 1
    mask: str = ""
    boolean: bool = False
    heads_apart: tuple[bool, bool] = (True, False)
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def dims(self) -> ParallelDims:
        return ParallelDims(ulysses=self.mesh[0], ring=self.mesh[1])

    @property
    def heads(self) -> int:
        return self.groups * self.repeats

    def layout(self, lengths: tuple[int, ...]) -> Joint:
        weights = self.weights[: self.dims.size]
        return Joint(tuple(split_stream(length, weights) for length in lengths))

    def inputs(self) -> list[Tensor]:
        """Queries, keys and values of all tokens, in canonical order."""
        sizes = [sum(self.lengths), *[sum(self.keys or self.lengths)] * 2]
        heads = [self.heads, self.groups, self.groups]
        generator = torch.Generator().manual_seed(1)
        return [
            torch.randn(self.batch, h, n, DIM, generator=generator).to(self.dtype)
            for h, n in zip(heads, sizes, strict=True)
        ]

    def whole_mask(self) -> Tensor | None:
        """A mask of 2, 3 or 4 dims; the first key is always attended to."""
        if not self.mask:
            return None
        sizes = {"b": self.batch, "h": self.heads}
        sizes |= {"q": sum(self.lengths), "k": sum(self.keys or self.lengths)}
        found = torch.randn(
            [sizes[dim] if dim in self.mask else 1 for dim in "bhqk"],
            generator=torch.Generator().manual_seed(2),
        )
        if self.boolean:
            found = (found > 0).index_fill_(3, torch.tensor([0]), True)
        if "h" in self.mask:
            return found
        return found[:, 0] if "b" in self.mask else found[0, 0]


def packed(x: Tensor, apart: bool) -> Tensor:
    """(batch, heads, tokens, dim) as the request wants it."""
    return x if apart else x.transpose(1, 2).flatten(2)


def shared(ranks: Ranks, asked: Asked) -> list[tuple[Tensor, Tensor]]:
    """What each rank found for its tokens, and what one rank finds for them."""
    q, k, v = asked.inputs()
    mask, (apart, out_apart) = asked.whole_mask(), asked.heads_apart
    whole = plain(q, k, v, mask, asked.options.get("scale"))
    joint, keys = asked.layout(asked.lengths), asked.layout(asked.keys or asked.lengths)

    def work(world: World) -> tuple[Tensor, Tensor]:
        mesh = SequenceMesh(world, asked.dims, asked.weights[: asked.dims.size])
        parts = [
            packed(layout.shard(x, 2, mesh.index), apart)
            for layout, x in ((joint, q), (keys, k), (keys, v))
        ]
        given = {"mask": mask, "skip_reshape": apart, "skip_output_reshape": out_apart}
        request = Request.of(*parts, asked.heads, **given, **asked.options)
        found = sequence_attention(mesh, joint, keys, optimized_attention, request)
        return found, packed(joint.shard(whole, 2, mesh.index), out_apart)

    return ranks.run(asked.dims.size, work)


def check(ranks: Ranks, asked: Asked, bound: float = 1e-5) -> None:
    for found, wanted in shared(ranks, asked):
        assert found.dtype == asked.dtype and found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any).map(tuple)
anything = st.builds(
    Asked,
    mesh=st.sampled_from(MESHES),
    weights=st.tuples(*[st.floats(0.2, 4.0)] * 4),
    lengths=lengths,
    keys=st.just(()) | lengths,
    groups=st.integers(1, 7),
    repeats=st.integers(1, 3),
    batch=st.integers(1, 2),
    mask=st.sampled_from(["", "qk", "k", "bqk", "bk", "hk", "bhqk", "q", "b"]),
    boolean=st.booleans(),
    heads_apart=st.tuples(st.booleans(), st.booleans()),
)


@given(asked=anything)
@settings(max_examples=150)
def test_ranks_find_what_one_does(ranks: Ranks, asked: Asked):
    check(ranks, asked)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("heads", range(1, 8))
def test_any_number_of_heads(ranks: Ranks, mesh: tuple[int, int], heads: int):
    check(ranks, Asked(mesh=mesh, groups=heads, lengths=(2, 7)))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("mask", ["qk", "bqk", "hk", "bhqk"])
def test_masks_of_two_three_and_four_dims(
    ranks: Ranks, mesh: tuple[int, int], boolean: bool, mask: str
):
    asked = Asked(mesh=mesh, mask=mask, boolean=boolean, lengths=(1, 8), groups=3, batch=2)
    check(ranks, asked)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("mask", ["", "bhqk"])
def test_queries_in_groups_share_their_keys(ranks: Ranks, mesh: tuple[int, int], mask: str):
    check(ranks, Asked(mesh=mesh, groups=3, repeats=2, lengths=(3, 8), mask=mask))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("keys", [(), (1, 2), (6,)])
def test_streams_that_all_ranks_have(ranks: Ranks, mesh: tuple[int, int], keys: tuple[int, ...]):
    check(ranks, Asked(mesh=mesh, lengths=(1, 1), keys=keys, mask="qk"))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_block_whose_keys_are_all_hidden_weighs_nothing(ranks: Ranks, mesh: tuple[int, int]):
    """Padding that fills the last ranks, and queries that see nothing at all."""

    class Padded(Asked):
        def whole_mask(self) -> Tensor:
            found = torch.zeros(9, 9)
            found[:, 3:] = -math.inf
            found[4] = -math.inf
            return found > -1 if self.boolean else found

    for boolean in (False, True):
        check(ranks, Padded(mesh=mesh, mask="qk", boolean=boolean))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_scale_is_honoured(ranks: Ranks, mesh: tuple[int, int]):
    check(ranks, Asked(mesh=mesh, options={"scale": 0.1, "enable_gqa": False}))


@pytest.mark.parametrize("mesh", MESHES)
def test_half_precision_keeps_its_dtype(ranks: Ranks, mesh: tuple[int, int]):
    check(ranks, Asked(mesh=mesh, dtype=torch.bfloat16, mask="qk"), bound=3e-2)
    precise = Asked(mesh=mesh, dtype=torch.bfloat16, options={"attn_precision": torch.float32})
    check(ranks, precise, bound=3e-2)


def kernel_that_notes(noted: list[dict[str, Any]]) -> Callable[..., Tensor]:
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        noted.append(kwargs)
        return optimized_attention(*args, **kwargs)

    return kernel


def one_rank(
    world: World, asked: Asked, kernel: Any = optimized_attention, **kwargs: Any
) -> Tensor:
    joint = asked.layout(asked.lengths)
    mesh = SequenceMesh(world, asked.dims, asked.weights[: asked.dims.size])
    parts = [joint.shard(x, 2, mesh.index) for x in asked.inputs()]
    request = Request.of(*parts, asked.heads, skip_reshape=True, **kwargs)
    return sequence_attention(mesh, joint, joint, kernel, request)


def test_without_a_ring_the_kernel_gets_all_options(ranks: Ranks):
    noted: list[dict[str, Any]] = []
    options = {"attn_precision": torch.float32, "scale": 0.5, "anything": 1}
    ranks.run(2, lambda world: one_rank(world, Asked(), kernel_that_notes(noted), **options))
    given = {**options, "mask": None, "skip_reshape": True}
    assert noted == [given, given]


def test_a_rank_without_heads_calls_no_kernel(ranks: Ranks):
    noted: list[dict[str, Any]] = []
    asked = Asked(mesh=(3, 1), groups=1)
    outs = ranks.run(3, lambda world: one_rank(world, asked, kernel_that_notes(noted)))
    assert len(noted) == 1 and [out.shape[2] for out in outs] == [DIM] * 3


def refused(world: World, asked: Asked, **kwargs: Any) -> str:
    with pytest.raises(CannotSplit) as caught:
        one_rank(world, asked, **kwargs)
    return str(caught.value)


def test_a_ring_refuses_options_that_it_does_not_know(ranks: Ranks):
    asked = Asked(mesh=(1, 2))
    found = ranks.run(2, lambda world: refused(world, asked, is_causal=True, dropout_p=0.5))
    told = "a ring cannot honour the attention option(s) ['dropout_p', 'is_causal']."
    assert found == [told, told]


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
def test_other_lengths_than_the_plan_s_are_refused(ranks: Ranks, mesh: tuple[int, int]):
    asked = Asked(mesh=mesh, lengths=(9,))

    def work(world: World) -> str:
        mesh = SequenceMesh(world, asked.dims, asked.weights[:2])
        joint, q = asked.layout((9,)), torch.zeros(1, 2, 7, DIM)
        request = Request.of(q, q, q, 2, skip_reshape=True)
        with pytest.raises(CannotSplit) as caught:
            sequence_attention(mesh, joint, joint, optimized_attention, request)
        return str(caught.value)

    found = ranks.run(2, work)
    assert found == [
        f"attention got (7, 7) queries and keys on this rank where the split has ({n}, {n}); this "
        f"model's forward differs from its plan."
        for n in (5, 4)
    ]


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
@pytest.mark.parametrize("shape", [(9, 8), (4, 9), (2, 9, 9), (1, 3, 9, 9)])
def test_a_mask_that_is_not_one_of_all_tokens_is_refused(
    ranks: Ranks, mesh: tuple[int, int], shape: tuple[int, ...]
):
    asked = Asked(mesh=mesh)
    found = ranks.run(2, lambda world: refused(world, asked, mask=torch.zeros(shape)))
    assert found[0] == found[1]
    assert str(shape)[1:] in found[0] and "one for all tokens has (1, 2, 9, 9)" in found[0]


def test_both_ends_may_have_heads_apart_or_not(ranks: Ranks):
    for apart in (False, True):
        for out_apart in (False, True):
            asked = replace(Asked(), heads_apart=(apart, out_apart), batch=2)
            check(ranks, asked)
