"""Messages between two ranks: all values come back, and what was sent before is only named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from comfyfleet.parallel.comm import World
from comfyfleet.parallel.tree import Unsendable
from comfyfleet.parallel.wire import Letter, Memory, Wire
from tests.parallel.ranks import Ranks

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip


def send_all(ranks: Ranks, messages: Sequence[Any], remember: bool = True) -> tuple[Any, list[int]]:
    """What rank 1 received, one by one, and the bytes of tensors that each message took."""

    def work(world: World) -> list[Any]:
        if world.place.rank:
            wire = Wire(world, 0)
            return [wire.receive() for _ in messages]
        wire, memory = Wire(world, 1), Memory() if remember else None
        return [wire.send(Letter.of(message, memory)) for message in messages]

    sent, received = ranks.run(2, work)
    return received, sent


def same(one: Any, other: Any) -> bool:
    """Equal in types and bits, tensors included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and raw(one) == raw(other)
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def raw(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any dtype, shape and strides, with any bits."""
    dtype = draw(st.sampled_from([d for d in DTYPES if d != torch.bool]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    seed = draw(st.integers(0, 3))
    size = math.prod(shape) * dtype.itemsize
    bits = torch.randint(256, (size,), generator=torch.Generator().manual_seed(seed))
    tensor = bits.to(torch.uint8).view(dtype).view(shape)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors(),
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.integers(), child, max_size=3),
    ),
    max_leaves=8,
)


@given(messages=st.lists(values, min_size=1, max_size=3), remember=st.booleans())
@settings(max_examples=60)
def test_messages_arrive_as_they_were_sent(ranks: Ranks, messages: list[Any], remember: bool):
    received, _ = send_all(ranks, [*messages, *messages], remember)
    assert same(received, [*messages, *messages])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(ranks: Ranks, dtype: torch.dtype):
    message = {
        "x": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype),
        "empty": torch.empty(0, 3).to(dtype),
    }
    received, _ = send_all(ranks, [message, message])
    assert same(received, [message, message])


def test_one_number_for_all_of_a_batch(ranks: Ranks):
    """Samplers expand a number to the batch, which leaves a stride of 0."""
    messages = [{"timestep": torch.tensor(0.5).expand(batch)} for batch in (1, 1, 3, 3)]
    received, _ = send_all(ranks, messages)
    assert [message["timestep"].tolist() for message in received] == [[0.5]] * 2 + [[0.5] * 3] * 2


def test_messages_without_bytes(ranks: Ranks):
    messages = [None, {}, torch.zeros(0), [torch.zeros(2, 0), torch.zeros(0, 2).half()]]
    received, sent = send_all(ranks, messages)
    assert same(received, messages) and sent == [0, 0, 0, 0]


def test_a_tensor_in_two_places_travels_once(ranks: Ranks):
    shared = torch.ones(100)
    received, sent = send_all(ranks, [{"input": [shared, shared]}])
    first, second = received[0]["input"]
    assert first is second and 400 <= sent[0] < 800


def test_both_ends_send(ranks: Ranks):
    def work(world: World) -> list[int]:
        wire, found = Wire(world, 1 - world.place.rank), []
        for question in range(3):
            if world.place.rank == 0:
                wire.send(Letter.of({"x": torch.tensor(question)}))
                found.append(wire.receive()["x"].item())
            else:
                found.append(wire.receive()["x"].item())
                wire.send(Letter.of({"x": torch.tensor(question + 10)}))
        return found

    assert ranks.run(2, work) == [[10, 11, 12], [0, 1, 2]]


def test_what_cannot_be_sent_is_refused_before_anything_is(ranks: Ranks):
    def work(world: World) -> Any:
        wire = Wire(world, 1 - world.place.rank)
        if world.place.rank:
            return wire.receive()
        with pytest.raises(Unsendable, match=r"a\[1\]"):
            wire.send(Letter.of({"a": [torch.zeros(3), print]}, Memory()))
        return wire.send(Letter.of("the next"))

    assert ranks.run(2, work) == [0, "the next"]


def test_what_was_sent_is_named(ranks: Ranks):
    first, second = torch.ones(100), torch.zeros(100)
    messages = [{"context": x} for x in (first, second, first.clone(), second)]
    received, sent = send_all(ranks, messages)
    assert same(received, messages)
    assert sent[0] >= 400 and sent[1] >= 400 and sent[2:] == [0, 0]


def test_nothing_is_named_without_a_memory(ranks: Ranks):
    _, sent = send_all(ranks, [torch.ones(100)] * 2, remember=False)
    assert sent[0] == sent[1] >= 400


def test_what_was_changed_in_place_is_sent_again(ranks: Ranks):
    shared = torch.zeros(100)

    def work(world: World) -> Any:
        if world.place.rank:
            wire = Wire(world, 0)
            return [wire.receive()[0].item() for _ in range(3)]
        wire, memory, sent = Wire(world, 1), Memory(), []
        for change in (0.0, 1.0, 0.0):
            shared.add_(change)
            sent.append(wire.send(Letter.of(shared, memory)))
        return sent

    sent, received = ranks.run(2, work)
    assert received == [0.0, 1.0, 1.0] and sent[0] == sent[1] >= 400 and sent[2] == 0


def test_who_receives_may_work_in_place(ranks: Ranks):
    def work(world: World) -> Any:
        if not world.place.rank:
            wire, memory = Wire(world, 1), Memory()
            return [wire.send(Letter.of(torch.ones(3), memory)) for _ in range(3)]
        wire = Wire(world, 0)
        return [wire.receive().mul_(2).tolist() for _ in range(3)]

    assert ranks.run(2, work)[1] == [[2.0, 2.0, 2.0]] * 3


def test_the_same_bits_of_another_dtype_or_shape_are_another_tensor(ranks: Ranks):
    zeros, nan = torch.zeros(4), torch.full((4,), math.nan)
    messages = [zeros, zeros.int(), zeros.view(2, 2), -zeros, nan, nan.clone()]
    received, sent = send_all(ranks, messages)
    assert same(received, messages)
    assert sent == [16] * 5 + [0]


def step(number: int, context: Tensor) -> dict[str, Tensor]:
    """As the steps of a sampler: another latent each time, the same text."""
    return {"x": torch.full((50,), float(number)), "context": context}


def test_a_place_that_never_repeats_itself_is_not_kept(ranks: Ranks):
    memory, context = Memory(), torch.ones(100)
    letters = [Letter.of(step(number, context), memory) for number in range(12)]
    assert [letter.numbers[0] is None for letter in letters[:3]] == [False] * 3
    assert letters[-1].numbers == [None, letters[0].numbers[1]]
    assert letters[-1].known == {letters[0].numbers[1]}
    received, _ = send_all(ranks, [step(number, context) for number in range(12)])
    assert same(received, [step(number, context) for number in range(12)])


def test_as_many_followers_as_there_are_it_is_not_kept(ranks: Ranks):
    """One letter for all: to send it to the second says nothing about the next step."""

    def work(world: World) -> Any:
        if world.place.rank:
            wire = Wire(world, 0)
            return [wire.receive()["x"][0].item() for _ in range(12)]
        memory, wires = Memory(), [Wire(world, rank) for rank in (1, 2)]
        for number in range(12):
            letter = Letter.of(step(number, torch.ones(3)), memory)
            for wire in wires:
                wire.send(letter)
        return letter.numbers[0]

    assert ranks.run(3, work) == [None, list(range(12)), list(range(12))]


def test_the_oldest_of_a_place_is_forgotten_on_both_ends(ranks: Ranks):
    """Nine texts in turn, where eight are kept; one that is used all the time stays."""
    often, texts = torch.full((9,), -1.0), [torch.full((9,), float(i)) for i in range(9)]
    messages = [{"context": x} for text in texts for x in (text, often)]

    def work(world: World) -> Any:
        if not world.place.rank:
            wire, memory = Wire(world, 1), Memory()
            sent = [wire.send(Letter.of(message, memory)) for message in messages]
            return sent, [wire.send(Letter.of({"context": x}, memory)) for x in (often, *texts)]
        wire = Wire(world, 0)
        found = [wire.receive() for _ in messages]
        assert len(wire._kept) == 8
        return found, [wire.receive() for _ in range(10)]

    (sent, again), (found, later) = ranks.run(2, work)
    assert same(found, messages)
    assert same(later, [{"context": x} for x in (often, *texts)])
    assert [size > 0 for size in sent] == [True, True] + [True, False] * 8
    assert again[0] == 0 and again[1] > 0


def test_a_follower_that_comes_later_gets_all(ranks: Ranks):
    def work(world: World) -> Any:
        if world.place.rank:
            return Wire(world, 0).receive().tolist()
        memory, message = Memory(), torch.ones(3)
        first, second = Wire(world, 1), Wire(world, 2)
        return [wire.send(Letter.of(message, memory)) for wire in (first, second)]

    assert ranks.run(3, work) == [[16, 16], [1.0] * 3, [1.0] * 3]
