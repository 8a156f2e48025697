"""The words of a plan, what follows a stream, on toys that use it as ComfyUI's models do."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from comfyfleet.parallel.plan import (
    Follows,
    Frames,
    ParallelPlan,
    Part,
    Position,
    Ranges,
    Residuals,
    Tokens,
)
from tests.parallel.ranks import Ranks
from tests.parallel.toys import (
    ALL,
    ATTEND,
    ENTER,
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

TEXT, IMAGE = ("text",), ("image",)
BOTH = TEXT + IMAGE
ENTER_BOTH = Part(path="blocks.0", enter={"text": TEXT, "image": IMAGE})
LEAVE_IMAGE = Part(path="final", leave={0: IMAGE})


def tokens(length: int = 9, batch: int = 1, seed: int = 0) -> Tensor:
    return noise(batch, length, WIDTH, seed=seed)


def following(**rules: Follows) -> ParallelPlan:
    return plan_of(ENTER, Part(path="blocks.*", attends=(ALL,), local=rules), LEAVE)


# Tokens.


class Scaled(Block):
    def forward(self, x, scale=None, transformer_options=None):
        return super().forward(x if scale is None else x * scale, transformer_options)


@pytest.mark.parametrize("shape", [(1, 9, 1), (2, 9, WIDTH), (1, 1, WIDTH), (2, 1, 1)])
def test_tokens_follow_and_one_for_all_stays(ranks: Ranks, shape: tuple[int, ...]):
    plan = following(scale=Tokens(dim=1, of=ALL))
    check(ranks, plan, Stack(Scaled), tokens(batch=2), scale=noise(*shape, seed=3))
    check(ranks, plan, Stack(Scaled), tokens(batch=2), scale=None)


def test_tokens_of_a_stream_of_one(ranks: Ranks):
    plan = following(scale=Tokens(dim=1, of=ALL))
    check(ranks, plan, Stack(Scaled), tokens(1), scale=noise(1, 1, WIDTH))


class Rotated(PairBlock):
    def forward(self, text, image, places, transformer_options=None):
        places = (
            places[0] * places[1] if isinstance(places, tuple) else places.movedim(2, 1)[:, :, 0]
        )
        both = mix(torch.cat([text, image], 1) * places, transformer_options)
        return both.split([text.shape[1], image.shape[1]], 1)


@pytest.mark.parametrize("text", [1, 3])
def test_tokens_of_streams_behind_one_another(ranks: Ranks, text: int):
    rule = {"places": Tokens(dim=2, of=BOTH, in_tuple=1)}
    plan = plan_of(ENTER_BOTH, Part(path="blocks.*", attends=(BOTH,), local=rule), LEAVE_IMAGE)
    inputs, length = (tokens(text), tokens(seed=1)), text + 9
    check(ranks, plan, Pair(Rotated), *inputs, places=noise(1, 1, length, WIDTH, seed=2))
    places = (noise(1, length, 1, seed=3), noise(1, length, WIDTH, seed=4), "not a tensor")
    check(ranks, plan, Pair(Rotated), *inputs, places=places)


def test_tokens_of_another_length_are_refused(ranks: Ranks):
    told = refusal(
        ranks, following(scale=Tokens(dim=1, of=ALL)), Stack(Scaled), tokens(), scale=noise(1, 8, 1)
    )
    assert told == "toy: scale has 8 entries for 9 tokens."


def test_arguments_that_a_part_refuses(ranks: Ranks):
    part = Part(path="blocks.*", attends=(ALL,), refuses={"scale": "no scales here."})
    plan = plan_of(ENTER, part, LEAVE)
    told = refusal(ranks, plan, Stack(Scaled), tokens(), scale=noise(1, 9, 1))
    assert told == "toy with scale: no scales here."
    check(ranks, plan, Stack(Scaled), tokens(), scale=None)


# Frames.


def repeat_e(e: Tensor, x: Tensor) -> Tensor:
    """As Wan stretches what it has per frame over its tokens."""
    repeats = x.shape[1] // e.shape[1] if e.shape[1] > 1 else 1
    if repeats == 1:
        return e
    exact = repeats * e.shape[1] == x.shape[1]
    return e.repeat_interleave(repeats if exact else repeats + 1, 1)[:, : x.shape[1]]


class Framed(Block):
    def forward(self, x, e, transformer_options=None):
        e = e if isinstance(e, Tensor) else e.data
        scale = repeat_e(e, x) if e.ndim == 3 else e[:, None]
        return super().forward(x * scale, transformer_options)


FRAMES = following(e=Frames(dim=1, of="all", ndim=3))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 12])
def test_frames_are_stretched_over_this_rank_s_tokens(ranks: Ranks, frames: int):
    check(ranks, FRAMES, Stack(Framed), tokens(12, 2), e=noise(2, frames, WIDTH, seed=3))


def test_frames_of_few_tokens(ranks: Ranks):
    check(ranks, FRAMES, Stack(Framed), tokens(4), e=noise(1, 2, 1, seed=3))


def test_what_is_not_per_frame_stays(ranks: Ranks):
    check(ranks, FRAMES, Stack(Framed), tokens(12, 2), e=noise(2, WIDTH, seed=3))


def test_an_object_stands_for_its_data(ranks: Ranks):
    """LTX-2 wraps what its frames share."""
    wrapped = SimpleNamespace(data=noise(1, 3, WIDTH, seed=3))
    model, x = Stack(Framed), tokens(12)
    wanted = model.forward(x, e=wrapped)
    call = Call((x,), {"e": wrapped})
    for out in ranks.run(
        3, lambda world: forward(world, FRAMES, copy.deepcopy(model), call, (3, 1))
    ):
        assert_same(out, wanted)


# Ranges and positions.


class Ranged(Block):
    def forward(self, x, ranges=None, transformer_options=None):
        return super().forward(in_ranges(x, ranges), transformer_options)


def in_ranges(x: Tensor, ranges: Any) -> Tensor:
    """As Flux modulates tokens: some have another timestep; a pair has but one."""
    out = x.clone()
    for first, end, *scale in ranges or [(0, None, 1.0)]:
        out[:, first:end] *= scale[0] if scale else -1.5
    return out


RANGES = following(ranges=Ranges(of=ALL))


@pytest.mark.parametrize(
    "ranges",
    [
        None,
        [(0, None, 2.0)],
        [(0, 4, 2.0), (4, None, -1.0)],
        [(0, 1, 2.0), (1, 2, 3.0), (7, 9, 4.0)],
        [(8, 9, 2.0)],
        [(3, 3, 2.0), (0, 0, 3.0)],
        [(0, 5), (5, None)],
        [(2, 7)],
    ],
)
def test_ranges_and_pairs(ranks: Ranks, ranges: Any):
    check(ranks, RANGES, Stack(Ranged), tokens(), ranges=ranges)


class RangedPair(nn.Module):
    """Flux: side by side, then one behind the other with ranges that it moves by its text."""

    def __init__(self) -> None:
        super().__init__()
        self.doubles = nn.ModuleList([PairBlock()])
        self.singles = nn.ModuleList([Ranged(), Ranged()])
        self.final = nn.Identity()

    def forward(self, text, image, ranges, transformer_options=None):
        for block in self.doubles:
            text, image = block(text, image, transformer_options)
        x, moved = torch.cat([text, image], 1), []
        for first, end, scale in ranges:
            first = first + text.shape[1] if first else 0
            moved.append((first, None if end is None else end + text.shape[1], scale))
        for block in self.singles:
            x = block(x, moved, transformer_options)
        return self.final(x[:, text.shape[1] :])


@pytest.mark.parametrize("text", [1, 4, 7])
@pytest.mark.parametrize(
    "ranges", [[(0, 5, 2.0), (5, 9, 3.0)], [(0, None, 2.0)], [(3, None, 2.0)], [(0, 1, 2.0)]]
)
def test_ranges_behind_another_stream(ranks: Ranks, text: int, ranges: Any):
    rule = {"ranges": Ranges(of=BOTH, behind="text")}
    plan = plan_of(
        Part(path="doubles.0", enter={"text": TEXT, "image": IMAGE}),
        Part(path="doubles.*", attends=(BOTH,)),
        Part(path="singles.*", attends=(BOTH,), local=rule),
        LEAVE_IMAGE,
    )
    check(ranks, plan, RangedPair(), tokens(text), tokens(seed=1), ranges)


class Positioned(Block):
    def forward(self, x, position=None, transformer_options=None):
        if position is not None:
            before, behind = torch.full((position,), 2.0), torch.full((x.shape[1] - position,), -3)
            x = x * torch.cat([before, behind])[:, None]
        return super().forward(x, transformer_options)


@pytest.mark.parametrize("position", [None, 0, 1, 4, 6, 9])
def test_positions(ranks: Ranks, position: int | None):
    plan = following(position=Position(of="all"))
    check(ranks, plan, Stack(Positioned), tokens(), position=position)


# Masks that a module makes itself.


class Masking(PairBlock):
    """Qwen-Image: the words that do not count are hidden from all."""

    def forward(self, text, image, words=None, transformer_options=None):
        both, mask = torch.cat([text, image], 1), None
        if words is not None:
            rest = torch.zeros(words.shape[0], image.shape[1])
            mask = torch.cat([words, rest], 1)[:, None]
        both = mix(both, transformer_options, mask=mask)
        return both.split([text.shape[1], image.shape[1]], 1)


@pytest.mark.parametrize("text", [1, 5])
def test_own_masks_are_joined(ranks: Ranks, text: int):
    words = torch.zeros(2, text)
    words[0, text // 2 :] = -1e4
    words[1, -1] = -torch.inf
    part = Part(
        path="blocks.*", attends=(BOTH,), own_mask=True, local={"words": Tokens(dim=1, of=TEXT)}
    )
    plan, inputs = plan_of(ENTER_BOTH, part, LEAVE_IMAGE), (tokens(text, 2), tokens(9, 2, seed=1))
    check(ranks, plan, Pair(Masking), *inputs, words=words)
    check(ranks, plan, Pair(Masking), *inputs, words=None)


class PerQuery(Block):
    def forward(self, x, transformer_options=None):
        return mix(x, transformer_options, mask=torch.zeros(4, 4))


def test_an_own_mask_per_query_is_refused(ranks: Ranks):
    part = Part(path="blocks.*", attends=(ALL,), own_mask=True)
    told = refusal(ranks, plan_of(ENTER, part, LEAVE), Stack(PerQuery), tokens(8))
    assert told == (
        "toy: the mask of blocks.* has shape (1, 1, 4, 4); one for the keys of this rank, alike "
        "for all queries, is expected."
    )


# Residuals.


def residual_plan(joined_by: str = "", *, leave: Part = LEAVE) -> ParallelPlan:
    return plan_of(
        ENTER, ATTEND, leave, control={"input": Residuals(of="all", joined_by=joined_by)}
    )


@pytest.mark.parametrize("length", [1, 4, 9])
def test_residuals_may_end_before_the_stream_does(ranks: Ranks, length: int):
    control = {"input": [tokens(length, 2, seed=5), None, tokens(seed=6)], "middle": [None]}
    check(ranks, residual_plan(), Stack(depth=3), tokens(batch=2), control=control)


class PairWithControl(Pair):
    def forward(self, text, image, transformer_options=None, control=None):
        for i, block in enumerate(self.blocks):
            text, image = block(text, image, transformer_options)
            image = image + control["output"][i]
        return self.final(image)


def test_residuals_follow_their_own_stream(ranks: Ranks):
    plan = plan_of(
        ENTER_BOTH,
        Part(path="blocks.*", attends=(BOTH,)),
        LEAVE_IMAGE,
        control={"output": Residuals(of="image")},
    )
    control = {"output": [tokens(seed=5), tokens(seed=6)]}
    check(ranks, plan, PairWithControl(PairBlock), tokens(4), tokens(seed=1), control=control)


@pytest.mark.parametrize("length", [1, 5])
def test_residuals_of_a_stream_that_all_have(ranks: Ranks, length: int):
    control = {"input": [tokens(length, seed=5)]}
    check(ranks, residual_plan(), Stack(), tokens(length), control=control)


def test_the_residual_of_the_block_that_joins_stays_whole(ranks: Ranks):
    plan = residual_plan("blocks", leave=Part(path="blocks.-1", leave={0: ALL}))
    for length in (9, 7):
        control = {"input": [tokens(length, seed=5), tokens(length, seed=6)]}
        check(ranks, plan, Stack(), tokens(), control=control)


def test_residuals_that_are_not_tokens_are_refused(ranks: Ranks):
    control = {"input": [noise(1, WIDTH, 3, 3)]}
    told = refusal(ranks, residual_plan(), Stack(), tokens(), control=control)
    assert told == "control residuals of shape (1, 6, 3, 3); tokens are expected."
