"""A leader and followers: batch, cfg and sequence together, what travels, and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from comfyfleet.errors import CannotSplit, LinkLost  # noqa: E402
from comfyfleet.parallel.call import Call  # noqa: E402
from comfyfleet.parallel.comm import World  # noqa: E402
from comfyfleet.parallel.dims import ParallelDims  # noqa: E402
from comfyfleet.parallel.gang import Follower, Leader, Split  # noqa: E402
from tests.parallel.ranks import Ranks  # noqa: E402


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


class Toy(nn.Module):
    """Depends on every argument, and on nothing between samples."""

    def _forward(self, x, timestep, context, **kwargs):
        scale = kwargs.get("scale", 1.0)
        return x * timestep.view(-1, 1) * scale + context.mean(dim=(1, 2)).view(-1, 1)


def with_leader(ranks: Ranks, size: int, lead: Callable[[Leader], object]) -> list[object]:
    def work(world: World) -> object:
        if world.place.rank:
            return Follower(world, Toy()).serve()
        leader = Leader(world)
        try:
            return lead(leader)
        finally:
            leader.close()

    return ranks.run(size, work)


def call(batch: int, text: int = 5, seed: int = 0) -> Call:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, generator=generator)
    context = torch.randn(batch, text, 4, generator=generator)
    return Call((x, torch.arange(1.0, batch + 1), context), {"transformer_options": {}})


def alone(made: Call) -> torch.Tensor:
    return Toy()._forward(*made.args, **made.kwargs)


def equal(weights: int) -> tuple[float, ...]:
    return (1.0,) * weights


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 0.0)])
def test_batch_is_shared_by_weight(ranks: Ranks, weights: tuple[float, ...]):
    made = call(batch=5)

    def lead(leader: Leader) -> torch.Tensor:
        split = Split(ParallelDims(batch=2), weights)
        model = Toy()
        return leader.forward(split, model, model._forward, made)

    found, served = with_leader(ranks, 2, lead)
    assert torch.equal(found, alone(made))
    assert served == (0 if weights[1] == 0 else 1)


def test_what_lasts_is_sent_once(ranks: Ranks):
    first, second = call(batch=1, text=50), call(batch=1, text=70, seed=1)
    small = 4 * (3 + 1) + 64

    def lead(leader: Leader) -> list[int]:
        split, model, sent = Split(ParallelDims(cfg=2), equal(2)), Toy(), []
        for made in (first, second, first, second):
            before = leader.bytes_sent
            out = leader.forward(split, model, model._forward, made, cfg=1)
            assert torch.equal(out, alone(made))
            sent.append(leader.bytes_sent - before)
        return sent

    sent, _ = with_leader(ranks, 2, lead)
    assert sent[0] >= 4 * 50 * 4 and sent[1] >= 4 * 70 * 4
    assert sent[2] <= small and sent[3] <= small


def test_a_changed_conditioning_is_sent_again(ranks: Ranks):
    made = call(batch=1)

    def lead(leader: Leader) -> None:
        split, model = Split(ParallelDims(cfg=2), equal(2)), Toy()
        for _ in range(3):
            assert torch.equal(leader.forward(split, model, model._forward, made, 1), alone(made))
            made.args[2].add_(1.0)

    with_leader(ranks, 2, lead)


class Broken(Toy):
    def _forward(self, x, timestep, context, **kwargs):
        raise MemoryError("no room for it")


def test_a_follower_that_fails_is_noticed_at_once(ranks: Ranks):
    def work(world: World) -> str:
        if world.place.rank:
            with pytest.raises(MemoryError):
                Follower(world, Broken()).serve()
            return "failed"
        leader, model = Leader(world), Toy()
        with pytest.raises(LinkLost):
            leader.forward(Split(ParallelDims(cfg=2), equal(2)), model, model._forward, call(1), 1)
        leader.world.close()
        return "noticed"

    began = time.monotonic()
    assert ranks.run(2, work) == ["noticed", "failed"]
    assert time.monotonic() - began < 5


def test_a_follower_says_why_it_cannot_split(ranks: Ranks):
    class Refuses(Toy):
        def _forward(self, x, timestep, context, **kwargs):
            raise CannotSplit("not this one")

    def work(world: World) -> str | int:
        if world.place.rank:
            return Follower(world, Refuses()).serve()
        leader, model, made = Leader(world), Toy(), call(2)
        split = Split(ParallelDims(batch=2), equal(2))
        with pytest.raises(CannotSplit, match="not this one"):
            leader.forward(split, model, model._forward, made)
        with pytest.raises(CannotSplit, match="not this one"):
            leader.forward(split, model, model._forward, made)
        leader.close()
        return "told"

    assert ranks.run(2, work) == ["told", 2]
