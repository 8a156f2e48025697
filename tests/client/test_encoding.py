"""What is compressed comes back bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.client.encoding import Layout, compress, decompress
from comfyfleet.errors import InputError

LAYOUTS = st.builds(Layout, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 4]))


@given(data=st.binary(max_size=200), layout=LAYOUTS)
def test_any_bytes_come_back(data: bytes, layout: Layout) -> None:
    flat = np.frombuffer(data, np.uint8)
    assert decompress(compress(flat, layout), layout, len(flat)).tobytes() == data


@given(bits=st.lists(st.integers(0, 2**32 - 1), max_size=30), channels=st.sampled_from([1, 3, 4]))
def test_any_floats_come_back(bits: list[int], channels: int) -> None:
    """Infinite, no number, negative zero, tiny ones: bit by bit."""
    flat = np.array(bits, np.uint32).view(np.uint8)
    layout = Layout(4, channels)
    assert decompress(compress(flat, layout), layout, len(flat)).tobytes() == flat.tobytes()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.0, 1e-30, 1e30, 2.0**-26])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_number_that_is_no_step_spoils_nothing(odd: float, channels: int) -> None:
    """In the last of several blocks."""
    numbers = (np.arange(150_000) % 997 / 1024).astype(np.float32)
    numbers[-2] = odd
    layout, flat = Layout(4, channels), numbers.view(np.uint8)
    assert decompress(compress(flat, layout), layout, len(flat)).tobytes() == flat.tobytes()


def test_pictures_of_bfloat16_take_two_fifths() -> None:
    rows, columns = np.mgrid[0:256, 0:256] / 256
    noise = np.random.default_rng(1).normal(0, 0.01, (256, 256, 3))
    picture = np.stack([rows, columns, rows * columns], -1) * 2 - 1 + noise
    rounded = (picture.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    image = (rounded + 1) / 2
    sent = compress(image.reshape(-1).view(np.uint8), Layout(4, 3))
    assert len(sent) < image.nbytes * 0.4


@pytest.mark.parametrize("data", [b"", b"nonsense", zstandard.compress(b"x" * 5000)])
def test_what_is_no_such_data_is_refused(data: bytes) -> None:
    """Also what announces more than was expected, before any memory is given to it."""
    with pytest.raises(InputError):
        decompress(data, Layout(4, 3), 1200)
