"""A forward by hooks: that it equals one rank's, leaves no trace, and refuses what it must."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.engine import OVERRIDE
from comfyfleet.parallel.plan import Part
from tests.parallel.attention import plain
from tests.parallel.ranks import MAX_RANKS, Ranks
from tests.parallel.toys import (
    ALL,
    ATTEND,
    ENTER,
    HEADS,
    LEAVE,
    WIDTH,
    Block,
    Pair,
    PairBlock,
    Stack,
    assert_same,
    check,
    forward,
    mix,
    noise,
    plan_of,
    refusal,
)

PLAN = plan_of(ENTER, ATTEND, LEAVE)
PASSED_BY = "the forward did not pass the modules of the plan toy."
BOTH = ("text", "image")
PAIR_PLAN = plan_of(
    Part(path="blocks.0", enter={"text": ("text",), "image": ("image",)}),
    Part(path="blocks.*", attends=(BOTH,)),
    Part(path="final", leave={0: ("image",)}),
)


def tokens(length: int = 9, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return noise(batch, length, WIDTH, seed=seed)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_one_stream(ranks: Ranks, length: int, batch: int):
    meshes = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (1, 4), (2, 2)]
    check(ranks, PLAN, Stack(), tokens(length, batch), meshes=meshes)


@pytest.mark.parametrize("text", [1, 3, 7])
def test_two_streams(ranks: Ranks, text: int):
    check(ranks, PAIR_PLAN, Pair(PairBlock), tokens(text, 2), tokens(9, 2, seed=1))


class Keywords(Stack):
    def forward(self, x, *args, **given):
        return super().forward(x, *args, **given)


@pytest.mark.parametrize("model", [Stack(), Keywords()])
def test_options_by_position_by_name_or_not_at_all(ranks: Ranks, model: nn.Module):
    check(ranks, PLAN, model, tokens(), transformer_options={"other": 1})
    check(ranks, PLAN, model, tokens(), transformer_options=None)
    check(ranks, PLAN, model, tokens())
    check(ranks, PLAN, Stack(), tokens(), {"other": 1}, None)


class Listening(Block):
    def forward(self, x, transformer_options):
        transformer_options["heard"].append(set(transformer_options))
        return super().forward(x, transformer_options)


def test_options_go_down_and_those_of_the_caller_stay_as_they_are(ranks: Ranks):
    options: dict[str, Any] = {"heard": [], "sigmas": 1}
    call = Call((tokens(),), {"transformer_options": options})
    ranks.run(1, lambda world: forward(world, PLAN, Stack(Listening), call, (1, 1)))
    assert options["heard"] == [{"heard", "sigmas", OVERRIDE}] * 2
    assert set(options) == {"heard", "sigmas"}


# Traces.


def hooks(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All that modules know of hooks, and what else they have."""
    return {
        name: {
            key: dict(value) if "hook" in key and isinstance(value, dict) else None
            for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def of_the_user(module: nn.Module, args: Any, out: Any = None) -> None:
    return


class Hidden(Block):
    def forward(self, x, transformer_options=None):
        heads = x.unflatten(2, (HEADS, -1)).transpose(1, 2)
        return plain(heads, heads, heads, None, None).transpose(1, 2).flatten(2)


class Failing(Block):
    def forward(self, x, transformer_options=None):
        raise ZeroDivisionError("in the block")


def with_hooks(model: nn.Module) -> nn.Module:
    model.blocks[0].register_forward_pre_hook(of_the_user)
    model.blocks[-1].register_forward_hook(of_the_user)
    return model


@pytest.mark.parametrize(
    ("block", "options", "error"),
    [
        (Block, {}, None),
        (Failing, {}, ZeroDivisionError),
        (Block, {"patches": {"attn1": [print]}}, CannotSplit),
        (Hidden, {}, CannotSplit),
    ],
)
def test_hooks_are_removed_without_a_trace(ranks: Ranks, block: Any, options: Any, error: Any):
    models = [with_hooks(Stack(block)) for _ in range(2)]
    before = [hooks(model) for model in models]
    call = Call((tokens(),), {"transformer_options": options})

    def work(world: World) -> None:
        run = partial(forward, world, PLAN, models[world.place.rank], call, (2, 1))
        if error is None:
            run()
        else:
            with pytest.raises(error):
                run()

    ranks.run(2, work)
    assert [hooks(model) for model in models] == before


def test_no_hook_stays_if_one_cannot_be_put_on(ranks: Ranks):
    class Stubborn(nn.Identity):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no hooks here")

    model = Stack()
    model.final = Stubborn()
    before = hooks(model)

    def work(world: World) -> None:
        with pytest.raises(RuntimeError, match="no hooks here"):
            forward(world, PLAN, model, Call((tokens(),), {}), (1, 1))

    ranks.run(1, work)
    assert hooks(model) == before


def test_a_model_that_was_split_can_be_forgotten(ranks: Ranks):
    """Also one whose module's forward was replaced by something that holds the module."""

    def held(block: Block) -> Callable[..., torch.Tensor]:
        return lambda x, transformer_options=None: Block.forward(block, x, transformer_options)

    model = Stack()
    model.blocks[0].forward = held(model.blocks[0])
    forgotten = weakref.ref(model.blocks[0])
    check(ranks, PLAN, model, tokens())
    del model
    # A thread holds what it has done until it has something else to do.
    ranks.run(MAX_RANKS, lambda world: None)
    gc.collect()
    assert forgotten() is None


def test_a_model_can_be_split_again_after_an_error(ranks: Ranks):
    model = Stack()
    told = refusal(ranks, PLAN, model, tokens(), {"patches": {"attn1": [print]}})
    assert told.startswith("a node patches the model")
    check(ranks, PLAN, model, tokens())


# Refusals.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patches": {"attn1": [print], "double": []}}, "(patches: attn1)"),
        ({"patches_replace": {"dit": {("double", 0): print}}}, "(patches_replace: dit)"),
        ({"patches": {"b": [print], "a": [print]}}, "(patches: a, b)"),
    ],
)
def test_patches_are_refused_by_name(ranks: Ranks, options: dict[str, Any], told: str):
    found = refusal(ranks, PLAN, Stack(), tokens(), transformer_options=options)
    assert found == f"a node patches the model {told}; such a patch must see all tokens."


def test_patches_that_are_none_do_no_harm(ranks: Ranks):
    empty = {"patches": {"attn1": []}, "patches_replace": {"dit": {}}}
    check(ranks, PLAN, Stack(), tokens(), transformer_options=empty)


def test_control_lists_that_the_plan_does_not_know_are_refused(ranks: Ranks):
    control = {"middle": [None, tokens()]}
    told = refusal(ranks, PLAN, Stack(), tokens(), control=control)
    assert told == "toy: control residuals of kind 'middle' cannot be split."
    told = refusal(ranks, PLAN, Stack(), tokens(), None, control)
    assert told == "toy: control residuals of kind 'middle' cannot be split."


def test_control_lists_without_residuals_do_no_harm(ranks: Ranks):
    check(ranks, PLAN, Stack(), tokens(), control={"middle": [None], "output": []})
    check(ranks, PLAN, Stack(), tokens(), control={})
    check(ranks, PLAN, Stack(), tokens(), control=None)


class Conditioned(Stack):
    def forward(self, x, reference=None, transformer_options=None, **given):
        return super().forward(x, transformer_options)


def test_arguments_that_the_plan_refuses(ranks: Ranks):
    plan = plan_of(ENTER, ATTEND, LEAVE, refuses={"reference": "no room.", "sound": "no ears."})
    assert refusal(ranks, plan, Conditioned(), tokens(), tokens()) == "toy with reference: no room."
    assert refusal(ranks, plan, Conditioned(), tokens(), sound=1) == "toy with sound: no ears."
    check(ranks, plan, Conditioned(), tokens(), None, sound=None)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], PASSED_BY),
        ([ENTER, ATTEND], PASSED_BY),
        ([Part(path="elsewhere.*.deeper", leave={0: ALL})], PASSED_BY),
        ([LEAVE], "toy: the forward passed over ['all']."),
        ([ATTEND, LEAVE], "toy: the forward passed over ['all']."),
    ],
)
def test_a_model_that_goes_another_way_is_refused(ranks: Ranks, parts: list[Part], told: str):
    assert refusal(ranks, plan_of(*parts), Stack(), tokens()) == told


def test_attention_that_cannot_be_intercepted_is_refused(ranks: Ranks):
    told = refusal(ranks, PLAN, Stack(Hidden), tokens())
    assert told == "the attention of blocks.* cannot be intercepted."


# Another override of the attention.


class Doubled:
    """A node's override, which calls the kernel that it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return 2 * kernel(*args, **kwargs)


def test_the_override_of_a_node_sees_all_tokens_of_some_heads(ranks: Ranks):
    override = Doubled()
    model, options = Stack(), {OVERRIDE: override}
    wanted = model.forward(tokens(), options)
    override.calls = 0
    call = Call((tokens(), options), {})
    found = ranks.run(2, lambda world: forward(world, PLAN, copy.deepcopy(model), call, (2, 1)))
    for out in found:
        assert_same(out, wanted)
    assert override.calls == 4 and options == {OVERRIDE: override}


def test_a_ring_has_no_place_for_it(ranks: Ranks):
    told = refusal(ranks, PLAN, Stack(), tokens(), {OVERRIDE: Doubled()}, mesh=(1, 2))
    assert told == "a node replaced the attention; a ring needs its log-sum-exp."


class Crossed(Block):
    """Attention to a text that every rank has whole, and to the tokens."""

    def forward(self, x, text, transformer_options=None):
        x = mix(x, transformer_options)
        return mix(x, transformer_options, keys=text)


@pytest.mark.parametrize(
    "attend",
    [
        Part(path="blocks.*", attends=(ALL, ())),
        Part(path="blocks.*.inner", attends=(ALL,)),
    ],
    ids=["second call", "outside of the part"],
)
def test_attention_may_stay_local(ranks: Ranks, attend: Part):
    class Inner(Crossed):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, x, text, transformer_options=None):
            x = self.inner(x, transformer_options)
            return mix(x, transformer_options, keys=text)

    block = Inner if "inner" in attend.path else Crossed
    check(ranks, plan_of(ENTER, attend, LEAVE), Stack(block), tokens(), text=tokens(4, seed=5))
