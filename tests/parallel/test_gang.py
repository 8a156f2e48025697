"""A leader and followers: batch, cfg and sequence together, what travels, and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from comfyfleet.errors import CannotSplit, LinkLost
from comfyfleet.parallel import gang
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Follower, Leader, Split
from comfyfleet.parallel.tree import Unsendable
from comfyfleet.parallel.turns import Turns
from tests.parallel.ranks import TIMEOUT_S, Ranks
from tests.parallel.toys import (
    ATTEND,
    ENTER,
    LEAVE,
    WIDTH,
    Stack,
    assert_same,
    noise,
    plan_of,
)


class Toy(nn.Module):
    """Depends on every argument, and on nothing between samples."""

    def _forward(self, x, timestep, context, **kwargs):
        scale = kwargs.get("scale", 1.0)
        return x * timestep.view(-1, 1) * scale + context.mean(dim=(1, 2)).view(-1, 1)


def with_leader(
    ranks: Ranks, size: int, lead: Callable[[Leader], object], make: Callable[[], nn.Module] = Toy
) -> list[object]:
    def work(world: World) -> object:
        if world.place.rank:
            return Follower(world, make()).serve()
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
    assert time.monotonic() - began < TIMEOUT_S / 2, "not by the time limit of an operation"


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


def test_what_cannot_be_sent_ends_no_gang(ranks: Ranks):
    """Nothing was sent: the next forward goes well, and followers are let go in peace."""
    made = call(batch=2)
    unsendable = Call(made.args, {"transformer_options": {"a_function": print}})

    def lead(leader: Leader) -> None:
        split, model = Split(ParallelDims(batch=2), equal(2)), Toy()
        with pytest.raises(Unsendable, match="a_function"):
            leader.forward(split, model, model._forward, unsendable)
        assert torch.equal(leader.forward(split, model, model._forward, made), alone(made))
        with pytest.raises(Unsendable, match="a_function"):
            leader.forward(split, model, model._forward, unsendable)

    assert with_leader(ranks, 2, lead) == [None, 1]


class Tokens(Stack):
    def _forward(self, x, transformer_options=None):
        return self.forward(x, transformer_options)


@pytest.mark.parametrize(
    ("dims", "served"),
    [
        (ParallelDims(ring=3), [2, 2]),
        (ParallelDims(ulysses=3), [2, 2]),
        (ParallelDims(ulysses=2, batch=2), [2, 2, 2]),
        (ParallelDims(ring=2, batch=2), [2, 2, 2]),
        (ParallelDims(ulysses=2, ring=2), [2, 2, 2]),
    ],
    ids=str,
)
def test_tokens_are_shared_beside_all_else(
    ranks: Ranks, dims: ParallelDims, served: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gang, "find_plan", lambda model: plan_of(ENTER, ATTEND, LEAVE))
    made = Call((noise(3, 9, WIDTH),), {"transformer_options": {}})

    def lead(leader: Leader) -> None:
        split, model = Split(dims, equal(dims.size)), Tokens()
        for _ in range(2):
            found = leader.forward(split, model, model._forward, made)
            assert_same(found, model._forward(*made.args))

    assert with_leader(ranks, dims.size, lead, Tokens) == [None, *served]


def test_conditionings_are_shared_by_sequence_groups(ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    """The leader's group and the other one compute at the same time, in turns on this side."""
    monkeypatch.setattr(gang, "find_plan", lambda model: plan_of(ENTER, ATTEND, LEAVE))
    calls = [Call((noise(1, 9, WIDTH, seed=cfg),), {}) for cfg in (0, 1)]

    def lead(leader: Leader) -> None:
        split, model, turns = Split(ParallelDims(ring=2, cfg=2), equal(4)), Tokens(), Turns()

        def compute(cfg: int) -> torch.Tensor:
            made = calls[cfg]
            return leader.forward(split, model, model._forward, made, cfg, turns.waiting)

        for _ in range(2):
            found = turns.run([partial(compute, 0), partial(compute, 1)])
            for out, made in zip(found, calls, strict=True):
                assert_same(out, model._forward(*made.args))

    assert with_leader(ranks, 4, lead, Tokens) == [None, 2, 2, 2]
