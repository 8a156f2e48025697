from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet.errors import RunError

torch = pytest.importorskip("torch")

from comfyfleet.comfy.join import check_parts, join_audio, join_images, list_images  # noqa: E402

DTYPES = ["float32", "float16", "bfloat16", "float64", "uint8"]


def images(number: float, batch: int = 1, size: tuple[int, int] = (2, 3), **form: Any) -> Any:
    """A batch of pictures that are all of one number."""
    channels = form.pop("channels", 3)
    return torch.full((batch, *size, channels), float(number), **form)


def sound(number: float, length: int = 4, rate: int = 44100, channels: int = 2, **more: Any) -> Any:
    return {
        "waveform": torch.full((1, channels, length), float(number)),
        "sample_rate": rate,
        **more,
    }


def numbers(batch: Any) -> list[float]:
    """The number of each picture."""
    return [float(picture.flatten()[0]) for picture in batch]


def message_of(join: Any, shares: list[list[Any]]) -> str:
    with pytest.raises(RunError) as caught:
        join(shares)
    return str(caught.value)


def test_images_are_joined_in_share_order() -> None:
    joined = join_images([[images(0)], [images(1, 2), images(2)], [], [images(3)]])
    assert joined.shape == (5, 2, 3, 3)
    assert numbers(joined) == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_form_of_images_stays(dtype: str, channels: int) -> None:
    kind = getattr(torch, dtype)
    joined = join_images([[images(i, channels=channels, dtype=kind)] for i in range(3)])
    assert joined.dtype is kind and joined.shape == (3, 2, 3, channels)
    assert numbers(joined) == [0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=5))
def test_joining_is_concatenating(batches: list[list[int]]) -> None:
    counter = iter(range(99))
    shares = [[torch.rand(batch, 2, 2, 3) + next(counter) for batch in of] for of in batches]
    flat = [image for share in shares for image in share]
    if flat:
        assert torch.equal(join_images(shares), torch.cat(flat))
    else:
        assert message_of(join_images, shares) == "images: no share returned any."


def test_an_empty_batch_among_others() -> None:
    assert numbers(join_images([[images(0, 0)], [images(1, 2)], [images(2, 0)]])) == [1, 1]


def test_nothing_but_empty_batches() -> None:
    assert join_images([[images(0, 0)], [images(1, 0)]]).shape == (0, 2, 3, 3)


def test_a_joined_batch_is_memory_of_its_own() -> None:
    shares = [[images(1)]]
    join_images(shares).zero_()
    assert numbers(shares[0][0]) == [1]


def test_non_contiguous_images_are_joined_too() -> None:
    turned = torch.rand(1, 3, 2, 5).permute(0, 2, 3, 1)
    assert torch.equal(join_images([[turned], [turned]]), torch.cat([turned, turned]))


@pytest.mark.parametrize(
    ("other", "form"),
    [
        (images(0, size=(3, 2)), "2x3 with 3 channels (float32)"),
        (images(0, channels=4), "3x2 with 4 channels (float32)"),
        (images(0, dtype=torch.float16), "3x2 with 3 channels (float16)"),
    ],
    ids=["size", "channels", "dtype"],
)
def test_images_that_differ_are_told_with_their_shares(other: Any, form: str) -> None:
    message = message_of(join_images, [[images(0)], [other, other], [images(0)], [other]])
    assert message.startswith("images differ between shares and cannot be one batch: ")
    assert f"3x2 with 3 channels (float32) in share 0, 2; {form} in share 1, 3." in message
    assert "images_list" in message


def test_a_list_has_each_image_batch_as_it_is() -> None:
    shares = [[images(0, 2)], [images(1, size=(5, 5)), images(2)]]
    found = list_images(shares, None)
    assert [tuple(each.shape) for each in found] == [(2, 2, 3, 3), (1, 5, 5, 3), (1, 2, 3, 3)]
    for each in found:
        each.zero_()
    assert [numbers(each)[0] for share in shares for each in share] == [0, 1, 2], "copies"


def test_a_list_is_slices_of_the_batch_where_there_is_one() -> None:
    shares = [[images(0, 2)], [images(1), images(2, 3)]]
    batch = join_images(shares)
    found = list_images(shares, batch)
    assert [numbers(each) for each in found] == [[0, 0], [1], [2, 2, 2]]
    memory = batch.untyped_storage().data_ptr()
    assert {each.untyped_storage().data_ptr() for each in found} == {memory}


def test_sounds_follow_one_another_in_time() -> None:
    joined = join_audio([[sound(0, 2)], [sound(1, 1), sound(2, 3)], [sound(3, 1)]])
    assert joined["sample_rate"] == 44100
    assert joined["waveform"].tolist() == [[[0, 0, 1, 2, 2, 2, 3]] * 2]


def test_what_else_a_sound_says_is_that_of_the_first() -> None:
    first = sound(0, title="a")
    joined = join_audio([[first], [sound(1, title="b")]])
    assert joined["title"] == "a" and joined["waveform"].shape == (1, 2, 8)
    assert first["waveform"].shape == (1, 2, 4), "the first is not changed"


def test_a_single_sound_is_memory_of_its_own() -> None:
    only = sound(1)
    join_audio([[only]])["waveform"].zero_()
    assert only["waveform"].sum() == 8


@pytest.mark.parametrize(
    ("other", "form"),
    [
        (sound(0, rate=48000), "1 x 2 channels at 48000 Hz"),
        (sound(0, channels=1), "1 x 1 channels at 44100 Hz"),
    ],
    ids=["rate", "channels"],
)
def test_sounds_that_differ_are_told_with_their_shares(other: Any, form: str) -> None:
    message = message_of(join_audio, [[sound(0)], [other], [sound(0, length=9)]])
    assert message.startswith("audio differ between shares and cannot be one batch: ")
    assert "1 x 2 channels at 44100 Hz in share 0, 2; " in message
    assert f"{form} in share 1." in message


def test_sounds_that_differ_are_not_sent_to_an_output_for_images() -> None:
    assert "images_list" not in message_of(join_audio, [[sound(0)], [sound(0, rate=8000)]])


def test_a_part_must_give_a_picture_for_each_item() -> None:
    shares = [[images(0, batch=5)], [images(1, batch=2)], [images(2), images(3)]]
    check_parts(shares, [None, 2, 2])
    with pytest.raises(RunError, match="3 of its items gave 2 images"):
        check_parts(shares, [None, 2, 3])


@pytest.mark.parametrize("shares", [[], [[]], [[], []]])
def test_nothing_to_join_is_an_error(shares: list[list[Any]]) -> None:
    assert message_of(join_images, shares) == "images: no share returned any."
    assert message_of(join_audio, shares) == "audio: no share returned any."
    assert list_images(shares, None) == []
