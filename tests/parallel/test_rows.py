"""Rows on several ranks: convolutions of any shape, norms, what is put on a model and taken off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Follower, Leader, Split, Way
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.rows import check_rows, rows_forward, share_rows
from comfyfleet.parallel.strips import Strips
from tests.parallel.ranks import Ranks

BY_ROWS = Way(check_rows, rows_forward)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    """Rows double, and halve again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 8, 5, padding=2),
            nn.GroupNorm(4, 8, affine=False),
            nn.Conv2d(8, 4, 3, stride=2, padding=1, bias=False),
        ]
        return nn.Sequential(*layers).eval()


def by_rows(
    ranks: Ranks,
    model: nn.Module,
    x: Tensor,
    weights: Sequence[float] = (1.0, 1.0),
    unit: int = 1,
) -> Tensor:
    models = [copy.deepcopy(model) for _ in weights]

    def work(world: World) -> Tensor:
        mesh = SequenceMesh(world, ParallelDims(ring=len(weights)), tuple(weights))
        own = models[world.place.rank]
        return rows_forward(mesh, own, own.forward, Call((x, unit), {}))

    return ranks.run(len(weights), work)[0]


def assert_close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).double().norm() <= bound * expected.double().norm()


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("height", [1, 4, 5, 11])
def test_all_layers_together(ranks: Ranks, num_ranks: int, height: int):
    model, x = net(), noise(2, 3, height, 4)
    with torch.inference_mode():
        expected = model(x)
    assert_close(by_rows(ranks, model, x, (1.0,) * num_ranks), expected)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 2),
    height=st.integers(1, 20),
    weights=st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=2, max_size=3),
)
def test_a_convolution_of_any_shape(
    ranks: Ranks,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    height: int,
    weights: list[float],
):
    """It is what it is on one rank, or it is refused as too small."""
    conv = nn.Sequential(nn.Conv2d(2, 3, kernel, stride, (padding, 2), (dilation, 1)))
    reach = dilation * (kernel - 1)
    assume(padding <= reach < height + 2 * padding)
    x = noise(1, 2, height, 5)
    with torch.inference_mode():
        expected = conv(x)
    try:
        found = by_rows(ranks, conv, x, weights)
    except CannotSplit as error:
        assert "too few" in str(error)
        assert stride > 1 or reach > 2 * padding
        return
    assert_close(found, expected)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("height", [2, 7])
def test_large_offsets_cost_a_norm_no_digits(ranks: Ranks, offset: float, height: int):
    """Sums of squares would have none left."""
    norm = nn.Sequential(nn.GroupNorm(2, 4))
    x = noise(2, 4, height, 3) + offset * torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, -1, 1, 1)
    x[:, :, 0] += 3.0  # so that the ranks' own means differ
    with torch.inference_mode():
        expected = norm.double()(x.double()).float()
    assert_close(by_rows(ranks, norm.float(), x), expected, 1e-6)


def test_half_precision_norms_are_summed_in_float(ranks: Ranks):
    norm, x = nn.Sequential(nn.GroupNorm(2, 4)), noise(1, 4, 64, 64) + 30.0
    with torch.inference_mode():
        expected = norm(x.bfloat16().float())
    found = by_rows(ranks, norm.bfloat16(), x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, 3e-3)


@pytest.mark.parametrize(
    ("height", "unit", "weights", "rows"),
    [
        (10, 1, (1, 1, 1), [4, 3, 3]),
        (40, 8, (1, 1), [24, 16]),
        (43, 8, (1, 1), [24, 19]),
        (5, 8, (1, 1), [5, 0]),
        (16, 8, (1, 1, 1), [8, 8, 0]),
        (19, 8, (1, 1, 1), [8, 11, 0]),
        (9, 1, (0.01, 1), [1, 8]),
        (1, 1, (0.01, 1), [1, 0]),
    ],
)
def test_rows_are_shared_by_weight(
    height: int, unit: int, weights: tuple[float, ...], rows: list[int]
):
    assert share_rows(height, unit, weights) == rows


def state(model: nn.Module) -> list[tuple[str, dict[str, object]]]:
    return [(name, dict(vars(module))) for name, module in model.named_modules()]


def test_a_model_is_as_before_after_a_forward(ranks: Ranks):
    model = net()
    models = [model, copy.deepcopy(model)]
    before = [state(each) for each in models]

    def work(world: World) -> None:
        mesh = SequenceMesh(world, ParallelDims(ring=2), (1.0, 1.0))
        own = models[world.place.rank]
        call = Call((noise(1, 3, 4, 4), 1), {})
        rows_forward(mesh, own, own.forward, call)

        def fails(x: Tensor) -> Tensor:
            assert own[0].forward != type(own[0]).forward
            own[0](x)
            raise MemoryError("no room")

        with pytest.raises(MemoryError):
            rows_forward(mesh, own, fails, call)

    ranks.run(2, work)
    for each, known in zip(models, before, strict=True):
        for (_, found), (_, old) in zip(state(each), known, strict=True):
            assert found.keys() == old.keys()
            assert all(found[name] is old[name] for name in old)


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(2)


def hooked() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    conv.register_forward_hook(lambda module, args, out: out)
    return conv


def replaced() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    conv.forward = conv._conv_forward
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Flip, r"Flip is not known"),
        (lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), r"1 \(AvgPool2d\) is not known"),
        (lambda: nn.ConvTranspose2d(3, 3, 2), "ConvTranspose2d is not known"),
        (lambda: nn.Conv3d(3, 3, 3), "Conv3d is not known"),
        (lambda: nn.InstanceNorm2d(3), "InstanceNorm2d is not known"),
        (lambda: nn.MultiheadAttention(4, 1), "MultiheadAttention is not known"),
        (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "Upsample is not known"),
        (lambda: nn.Upsample(scale_factor=1.5), "Upsample is not known"),
        (lambda: nn.Upsample(size=8), "Upsample is not known"),
        (lambda: nn.Dropout(0.1), "Dropout is not known"),
        (lambda: nn.BatchNorm2d(3), "BatchNorm2d is not known"),
        (
            lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            "something else than so many",
        ),
        (lambda: nn.Conv2d(3, 3, 3, padding="same"), "something else than so many"),
        (lambda: nn.Conv2d(3, 3, 3, padding=3), "more rows of zeros than it reads"),
        (hooked, "changed by a node"),
        (replaced, "changed by a node"),
    ],
)
def test_what_is_not_known_is_refused(make: Callable[[], nn.Module], reason: str):
    with pytest.raises(CannotSplit, match=reason):
        check_rows(make())


def test_frames_are_refused(ranks: Ranks):
    with pytest.raises(CannotSplit, match="5 dimensions"):
        by_rows(ranks, net(), noise(1, 3, 2, 4, 4))


def test_an_attention_gets_the_keys_of_all_pixels(ranks: Ranks):
    """With its own queries where it can be told others than keys, and else with all."""
    q, k, v = noise(3, 2, 4, 5, 3).unbind(0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.shape[2])
        queries, keys, values = (x.flatten(2).transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return out.transpose(1, 2).reshape(q.shape)

    def pytorch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v)

    for function, rows in ((attend, [5, 5]), (pytorch_attention, [2, 3])):
        seen: list[int] = []

        def work(world: World, function: Callable[..., Tensor] = function) -> Tensor:
            strips = Strips(world.group((0, 1)), [0, 3, 5])
            own = slice(strips.own.start, strips.own.stop)
            return strips.attended(function, *(x[:, :, own] for x in (q, k, v)))

        found = torch.cat(ranks.run(2, work), dim=2)
        assert sorted(seen) == rows
        assert_close(found, attend(q, k, v))


class Net(nn.Sequential):
    """What a gang calls by name."""

    def decode(self, x: Tensor) -> Tensor:
        return self(x)


def test_a_gang_goes_this_way(ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    name = f"{Net.__module__}.{Net.__qualname__}"
    monkeypatch.setitem(rows_forward.__globals__["_KNOWN"], name, lambda module: True)
    x, models = noise(1, 3, 7, 4), [Net(*net()) for _ in range(3)]

    def work(world: World) -> object:
        model = models[world.place.rank]
        if world.place.rank:
            return Follower(world, model, way=BY_ROWS).serve()
        leader, split = Leader(world, way=BY_ROWS), Split(ParallelDims(ring=3), (1.0, 2.0, 1.0))
        for _ in range(2):
            found = leader.forward(split, model, model.decode, Call((x, 1), {}))
        with pytest.raises(CannotSplit, match="dimensions"):
            leader.forward(split, model, model.decode, Call((x[0], 1), {}))
        with pytest.raises(CannotSplit, match="Flip"):
            leader.forward(split, Flip(), model.decode, Call((x, 1), {}))
        leader.close()
        return found

    found, *served = ranks.run(3, work)
    with torch.inference_mode():
        assert_close(found, net()(x))
    assert served == [3, 3]
