"""Attention with its log-sum-exp: against the definition in float64, whole and in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from comfyfleet.parallel import kernels
from comfyfleet.parallel.kernels import attend, merge

BATCH, HEADS, DIM = 2, 3, 8
BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
#: Which dims of (batch, heads, queries, keys) a mask has; the others are 1.
MASKED_DIMS = [(), (2,), (3,), (2, 3), (0, 3), (1, 3), (0, 1, 2, 3)]


@pytest.fixture(params=["_flash_cpu", "_plain"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kernels that a CPU can run."""
    monkeypatch.setattr(kernels, "_flash_cpu", getattr(kernels, request.param))


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        noise(BATCH, HEADS, tokens, DIM, seed=seed, dtype=dtype)
        for seed, tokens in enumerate((queries, keys, keys))
    ]


def boolean(queries: int, keys: int, dims: tuple[int, ...], seed: int = 9) -> Tensor:
    whole = (BATCH, HEADS, queries, keys)
    shape = [size if dim in dims else 1 for dim, size in enumerate(whole)]
    return noise(*shape, seed=seed) > 0


def additive(mask: Tensor, nothing: float) -> Tensor:
    return noise(*mask.shape, seed=8).masked_fill(~mask, nothing)


def defined(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention as in the books; where nothing is attended it gives zeros."""
    scale = DIM**-0.5 if scale is None else scale
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    if mask is not None:
        hides = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if hides else scores + mask.double()
    return scores.softmax(-1).nan_to_num(0.0) @ v.double(), scores.logsumexp(-1)


def assert_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], bound: float = 5e-6):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other.float(), rtol=bound, atol=bound)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_it_is_softmax_attention_with_the_logsumexp_of_its_scores(dtype: torch.dtype):
    q, k, v = inputs(5, 7, dtype)
    assert_close(attend(q, k, v, None), defined(q, k, v, None), BOUNDS[dtype])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
def test_a_scale_is_honoured(scale: float):
    q, k, v = inputs(5, 7)
    assert_close(attend(q, k, v, None, scale), defined(q, k, v, None, scale))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dims", MASKED_DIMS)
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: mask,
        lambda mask: additive(mask, -math.inf),
        lambda mask: additive(mask, -20.0),
        lambda mask: additive(mask, 0.0).half(),
    ],
    ids=["boolean", "with infinities", "with finite numbers", "of another dtype"],
)
def test_masks(dims: tuple[int, ...], make: Callable[[Tensor], Tensor]):
    q, k, v = inputs(5, 7)
    mask = make(boolean(5, 7, dims))
    assert_close(attend(q, k, v, mask), defined(q, k, v, mask))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("make", [lambda mask: mask, lambda mask: additive(mask, -math.inf)])
def test_where_nothing_is_attended_there_is_nothing(
    make: Callable[[Tensor], Tensor], dtype: torch.dtype
):
    q, k, v = inputs(5, 7, dtype)
    mask = boolean(5, 7, (2, 3))
    mask[..., 2, :] = False
    out, lse = attend(q, k, v, make(mask))
    assert not out[..., 2, :].any() and (lse[..., 2] == -math.inf).all()
    assert_close((out, lse), defined(q, k, v, make(mask)), BOUNDS[dtype])


@pytest.mark.parametrize(("queries", "keys"), [(5, 0), (0, 7), (0, 0)])
def test_without_keys_or_queries_there_is_nothing(queries: int, keys: int):
    out, lse = attend(*inputs(queries, keys, torch.bfloat16), None)
    assert out.shape == (BATCH, HEADS, queries, DIM) and lse.shape == (BATCH, HEADS, queries)
    assert out.dtype == lse.dtype == torch.float32
    assert not out.any() and (lse == -math.inf).all()


@pytest.mark.parametrize("dims", [(3,), (2, 3)])
def test_many_queries_are_taken_in_turns(dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "_ROWS", 4)
    monkeypatch.setattr(kernels, "_flash_cpu", kernels._plain)
    q, k, v = inputs(11, 7)
    mask = additive(boolean(11, 7, dims), -math.inf)
    assert_close(attend(q, k, v, mask), defined(q, k, v, mask))


@st.composite
def parted(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes of blocks of keys, some of them empty, and a mask that may hide whole blocks."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    hidden = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    kind = draw(st.sampled_from(["none", "boolean", "infinities"]))
    order = draw(st.permutations(range(len(sizes))))
    return {"sizes": sizes, "hidden": hidden, "kind": kind, "order": order}


@given(parted(), st.sampled_from(list(BOUNDS)))
@settings(max_examples=60)
def test_parts_of_the_keys_merge_into_the_whole(parted: dict[str, Any], dtype: torch.dtype):
    sizes, keys = parted["sizes"], sum(parted["sizes"])
    q, k, v = inputs(3, keys, dtype)
    mask = boolean(3, keys, (0, 2, 3))
    for part, hidden in zip(mask.split(sizes, 3), parted["hidden"], strict=True):
        part.logical_and_(torch.tensor(not hidden))
    made = {"none": None, "boolean": mask, "infinities": additive(mask, -math.inf)}[parted["kind"]]
    masks = [None] * len(sizes) if made is None else made.split(sizes, 3)
    blocks = list(zip(k.split(sizes, 2), v.split(sizes, 2), masks, strict=True))
    merged: tuple[Tensor, Tensor] | None = None
    for i in parted["order"]:
        found = attend(q, *blocks[i])
        merged = found if merged is None else merge(*merged, *found)
    assert merged is not None
    assert_close(merged, defined(q, k, v, made), BOUNDS[dtype])


def test_merging_nothing_with_nothing_gives_nothing():
    nothing = attend(*inputs(3, 0), None)
    out, lse = merge(*nothing, *nothing)
    assert not out.any() and (lse == -math.inf).all()


def test_merging_large_scores_does_not_overflow():
    q, k, v = inputs(3, 8)
    left, right = (attend(q * 1e3, part, v[:, :, :4], None) for part in k.split(4, 2))
    found = merge(*left, *right)
    assert_close(found, defined(q * 1e3, k, v[:, :, [0, 1, 2, 3] * 2], None), 1e-5)
