"""How streams enter, attend and leave, on toys that do it as ComfyUI's models do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from comfyfleet.parallel.plan import (
    Follows,
    ParallelPlan,
    Part,
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


class Side(nn.Module):
    """Sound and picture: one tuple, which look at each other with keys of the other."""

    def forward(self, x, transformer_options=None):
        picture, sound = x
        picture = picture + self.to_picture(picture, sound, transformer_options)
        return picture, sound + self.to_sound(sound, picture, transformer_options)

    def __init__(self) -> None:
        super().__init__()
        self.to_picture, self.to_sound = Across(), Across()


class Across(nn.Module):
    def forward(self, x, keys, transformer_options=None):
        return mix(x, transformer_options, keys=keys)


@pytest.mark.parametrize("sound", [1, 3, 11])
def test_items_of_a_tuple_enter_and_leave_and_ask_each_other(ranks: Ranks, sound: int):
    class Sides(Stack):
        def forward(self, picture, sound, transformer_options=None):
            x = (picture, sound)
            for block in self.blocks:
                x = block(x, transformer_options)
            return torch.cat(x, 1)

    first, second = ("picture",), ("sound",)
    plan = plan_of(
        Part(path="blocks.0", enter={"x.0": first, "x.1": second}),
        Part(path="blocks.*.to_picture", attends=(first,), keys=second),
        Part(path="blocks.*.to_sound", attends=(second,), keys=first),
        Part(path="blocks.-1", leave={0: first, 1: second}),
    )
    check(ranks, plan, Sides(Side), tokens(7), tokens(sound, seed=1))


class Gridded(Block):
    """Cosmos: (batch, frames, height, width, channels)."""

    def forward(self, x, transformer_options=None):
        mixed = super().forward(x.flatten(1, 3), transformer_options)
        return mixed.view(x.shape)


def test_tokens_along_several_dims(ranks: Ranks):
    enter = Part(path="blocks.0", enter={"x": ALL}, token_dims=3)
    x = noise(2, 2, 3, 5, WIDTH)
    check(ranks, plan_of(enter, ATTEND, LEAVE), Stack(Gridded), x)


class Numbered(nn.Module):
    def forward(self, *args, transformer_options=None):
        return PairBlock().forward(*args, transformer_options)


def test_arguments_by_number(ranks: Ranks):
    """SD3 passes them through ``*args``."""
    plan = plan_of(
        Part(path="blocks.0", enter={"0": TEXT, "1": IMAGE}),
        Part(path="blocks.*", attends=(BOTH,)),
        LEAVE_IMAGE,
    )
    check(ranks, plan, Pair(Numbered), tokens(4), tokens(seed=1))


class Again(PairBlock):
    """SD3.5 medium: text and image, then the image alone."""

    def forward(self, text, image, transformer_options=None):
        text, image = super().forward(text, image, transformer_options)
        return text, mix(mix(image, transformer_options), transformer_options)


def test_the_last_entry_holds_for_all_further_calls(ranks: Ranks):
    plan = plan_of(ENTER_BOTH, Part(path="blocks.*", attends=(BOTH, IMAGE)), LEAVE_IMAGE)
    check(ranks, plan, Pair(Again), tokens(4), tokens(seed=1))


class OwnText(nn.Module):
    """HiDream: each block has text of its own beside a stream that goes through all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([PairBlock(), PairBlock()])
        self.singles = nn.ModuleList([Block(), Block()])
        self.final = nn.Identity()

    def forward(self, image, texts, transformer_options=None):
        shared = texts[0]
        for block, own in zip(self.blocks, texts[1:], strict=True):
            both = torch.cat([shared, own], 1)
            both, image = block(both, image, transformer_options)
            shared = both[:, : shared.shape[1]]
        length = image.shape[1]
        for block, own in zip(self.singles, texts[1:], strict=True):
            x = torch.cat([image, shared, own], 1)
            x = block(x, transformer_options)
            image, shared = x[:, :length], x[:, length : length + shared.shape[1]]
        return self.final(image)


@pytest.mark.parametrize("lengths", [(3, 2, 2), (6, 5, 5), (1, 1, 1)])
def test_a_stream_may_be_kept_where_others_enter_and_leave(ranks: Ranks, lengths: tuple[int, ...]):
    all_of = IMAGE + TEXT
    plan = plan_of(
        Part(path="blocks.0", enter={"image": IMAGE}),
        Part(path="blocks.*", enter={"text": TEXT}, attends=(BOTH,), leave={0: TEXT}),
        Part(
            path="singles.*", enter={"x": all_of}, kept=IMAGE, attends=(all_of,), leave={0: all_of}
        ),
        LEAVE_IMAGE,
    )
    texts = [tokens(length, seed=seed) for seed, length in enumerate(lengths, 2)]
    check(ranks, plan, OwnText(), tokens(), texts)


def test_what_enters_again_must_have_as_many_tokens(ranks: Ranks):
    class Cut(Stack):
        def forward(self, x, transformer_options=None):
            x = self.blocks[0](x, transformer_options)
            return self.final(self.blocks[1](x[:, :4], transformer_options))

    plan = plan_of(Part(path="blocks.*", enter={"x": ALL}, attends=(ALL,), leave={0: ALL}), LEAVE)
    assert (
        refusal(ranks, plan, Cut(), tokens())
        == "toy: x has 4 tokens for all, of which 9 are known."
    )


def test_a_new_stream_behind_another_needs_room(ranks: Ranks):
    class Cut(Pair):
        def forward(self, text, image, transformer_options=None):
            text, image = self.blocks[0](text, image, transformer_options)
            return self.final(self.blocks[1](text, image, transformer_options)[1])

    plan = plan_of(
        Part(path="blocks.0", enter={"text": TEXT}, leave={0: TEXT}),
        Part(path="blocks.1", enter={"image": BOTH}, attends=(BOTH,)),
        LEAVE_IMAGE,
    )
    told = refusal(ranks, plan, Cut(PairBlock), tokens(9), tokens(4))
    assert told == "toy: image has 4 tokens for text and image, of which 9 are known."


def test_two_new_streams_in_one_tensor_cannot_be_told_apart(ranks: Ranks):
    plan = plan_of(Part(path="blocks.0", enter={"x": BOTH}), ATTEND, LEAVE)
    assert (
        refusal(ranks, plan, Stack(), tokens())
        == "toy: x has 9 tokens for text and image, of which 0 are known."
    )


class InPlace(Block):
    def forward(self, x, transformer_options=None):
        return super().forward(x.mul_(2), transformer_options)


@pytest.mark.parametrize("length", [9, 1])
def test_blocks_may_work_in_place_and_the_caller_s_tensor_stays(ranks: Ranks, length: int):
    x, plan = tokens(length), plan_of(ENTER, ATTEND, LEAVE)
    wanted = Stack(InPlace).forward(x.clone())
    call = Call((x,), {})
    for out in ranks.run(2, lambda world: forward(world, plan, Stack(InPlace), call, (2, 1))):
        assert_same(out, wanted)
    assert torch.equal(x, tokens(length))
