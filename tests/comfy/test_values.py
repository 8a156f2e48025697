"""Values through their packed form, with ComfyUI's own types: equal bit by bit."""

from __future__ import annotations

import pickle
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet.errors import InputError
from comfyfleet.work import TensorRef, VideoRef

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.comfy

DTYPES = [
    name
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
]
SHAPES = [(), (0,), (1,), (3, 0, 2), (2, 3, 4), (1, 16, 16, 3)]


def tensor(*shape: int, dtype: str = "float32", seed: int = 0) -> Any:
    """Any bits that the dtype can hold, NaN and the like among them."""
    kind = getattr(torch, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    top = 2 if dtype == "bool" else 256
    drawn = np.random.default_rng(seed).integers(0, top, size, dtype=np.uint8)
    made = torch.empty(shape, dtype=kind)
    made.view(-1).view(torch.uint8).copy_(torch.from_numpy(drawn))
    return made


def bits(value: Any) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(left: Any, right: Any) -> bool:
    """Equal types, keys, dtypes, shapes and bits, at any depth."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        form = (left.dtype, left.shape) == (right.dtype, right.shape)
        return form and bits(left) == bits(right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and bool((left == right).all())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def travelled(values: ModuleType, value: Any, *, copy: bool = True) -> Any:
    """The value after a way as through Ray: arrays in memory that nobody may write."""
    raw: list[pickle.PickleBuffer] = []
    data = pickle.dumps(values.pack(value), protocol=5, buffer_callback=raw.append)
    packed = pickle.loads(data, buffers=[each.raw().tobytes() for each in raw])
    assert not any(buffer.flags.writeable for buffer in packed.buffers)
    return values.unpack(packed, copy=copy)


def video(frames: int = 3, rate: str = "30000/1001", sound: bool = True) -> Any:
    from comfy_api.latest import InputImpl, Types

    audio = {"waveform": tensor(1, 2, 100, seed=2), "sample_rate": 44100} if sound else None
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(
            images=tensor(frames, 8, 8, 3, seed=1), audio=audio, frame_rate=Fraction(rate)
        )
    )


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_and_shape(
    dtype: str, shape: tuple[int, ...], copy: bool, values: ModuleType
) -> None:
    value = tensor(*shape, dtype=dtype)
    assert same(travelled(values, value, copy=copy), value)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
@pytest.mark.parametrize("dtype", ["bool", "float8_e5m2", "bfloat16", "float32", "complex128"])
def test_a_tensor_that_stays_in_its_process(
    dtype: str, shape: tuple[int, ...], copy: bool, values: ModuleType
) -> None:
    value = tensor(*shape, dtype=dtype)
    assert same(values.unpack(values.pack(value), copy=copy), value)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 in shape], ids=str)
def test_an_empty_tensor_that_stays_in_its_process(
    shape: tuple[int, ...], copy: bool, values: ModuleType
) -> None:
    value = tensor(*shape)
    assert same(values.unpack(values.pack(value), copy=copy), value)


@pytest.mark.parametrize("dtype", ["bool", "float8_e4m3fn", "bfloat16", "float32", "complex64"])
def test_strides_do_not_count(dtype: str, values: ModuleType) -> None:
    base = tensor(4, 6, 5, dtype=dtype)
    for value in (base.permute(2, 0, 1), base[::2, 1:4], base[:, :1].expand(4, 9, 5), base[1, 2]):
        assert same(travelled(values, value), value)


def test_a_channels_last_image(values: ModuleType) -> None:
    value = tensor(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert same(travelled(values, value), value)


def test_gradients_stay_behind(values: ModuleType) -> None:
    value = torch.nn.Parameter(torch.ones(3))
    back = travelled(values, value)
    assert not back.requires_grad and type(back) is torch.Tensor and back.tolist() == [1, 1, 1]


def test_inference_tensors_become_ordinary_ones(values: ModuleType) -> None:
    with torch.inference_mode():
        value = torch.ones(3) * 2
        back = travelled(values, value)
    assert back.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        b"bytes",
        [],
        (),
        {},
        [1, (2, [3, {"four": 5.0}])],
        {1: "a number as key", "2": (None,)},
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.float32(0.1),
    ],
    ids=repr,
)
def test_plain_values_are_left_as_they_are(value: Any, values: ModuleType) -> None:
    packed = values.pack(value)
    assert packed.buffers == []
    assert same(travelled(values, value), value)


def test_a_conditioning(values: ModuleType) -> None:
    extra = {"pooled_output": tensor(1, 16), "guidance": 3.5, "area": (8, 8, 0, 0), "mask": None}
    value = [[tensor(1, 77, 16, dtype="float16"), extra], [tensor(1, 5, 16), {}]]
    packed = values.pack(value)
    assert [buffer.nbytes for buffer in packed.buffers] == [77 * 32, 64, 5 * 64]
    assert same(travelled(values, value), value)


def test_a_latent_with_its_mask(values: ModuleType) -> None:
    value = {
        "samples": tensor(2, 4, 8, 8, dtype="bfloat16"),
        "noise_mask": tensor(2, 1, 64, 64),
        "batch_index": [0, 1],
    }
    assert same(travelled(values, value), value)


def test_a_sound(values: ModuleType) -> None:
    assert same(travelled(values, sound := {"waveform": tensor(1, 2, 50), "sample_rate": 8}), sound)


@pytest.mark.parametrize("rate", ["24", "30000/1001"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_video_keeps_frames_sound_and_rate(rate: str, sound: bool, values: ModuleType) -> None:
    value = video(rate=rate, sound=sound)
    packed = values.pack({"clips": [value]})
    assert isinstance(packed.skeleton["clips"][0], VideoRef)
    assert len(packed.buffers) == 1 + sound
    (back,) = travelled(values, {"clips": [value]})["clips"]
    assert type(back) is type(value)
    ours, theirs = value.get_components(), back.get_components()
    assert theirs.frame_rate == Fraction(rate) and isinstance(theirs.frame_rate, Fraction)
    assert same(theirs.images, ours.images) and same(theirs.audio, ours.audio)
    assert back.get_dimensions() == (8, 8)


def test_an_owned_video_shares_no_memory_with_the_transport(values: ModuleType) -> None:
    packed = values.pack(video(sound=False))
    images = values.unpack(packed).get_components().images
    assert images.data_ptr() != packed.buffers[0].ctypes.data


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.builds(
        lambda dtype, shape, seed: tensor(*shape, dtype=dtype, seed=seed),
        st.sampled_from(DTYPES),
        st.sampled_from(SHAPES),
        st.integers(0, 99),
    )
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(value=NESTED, copy=st.booleans())
def test_any_nesting_comes_back(value: Any, copy: bool, values: ModuleType) -> None:
    assert same(travelled(values, value, copy=copy), value)


def test_the_skeleton_says_where_tensors_stood(values: ModuleType) -> None:
    packed = values.pack({"a": tensor(2, 3, dtype="bfloat16"), "b": [1, tensor()]})
    assert packed.skeleton == {
        "a": TensorRef(0, "bfloat16", (2, 3)),
        "b": [1, TensorRef(1, "float32", ())],
    }
    assert [(each.dtype, each.shape) for each in packed.buffers] == [
        (np.dtype(np.uint8), (12,)),
        (np.dtype(np.uint8), (4,)),
    ]


def test_packing_copies_nothing_that_is_contiguous(values: ModuleType) -> None:
    value = tensor(4, 4, dtype="float16")
    (buffer,) = values.pack(value).buffers
    assert buffer.ctypes.data == value.data_ptr()


def test_unpack_copies_unless_told_not_to(values: ModuleType) -> None:
    packed = values.pack([tensor(4, 4), tensor(2, 2, dtype="bfloat16")])
    addresses = [buffer.ctypes.data for buffer in packed.buffers]
    views = values.unpack(packed, copy=False)
    assert [view.data_ptr() for view in views] == addresses
    before = [bits(view) for view in views]
    for copied in values.unpack(packed):
        assert copied.data_ptr() not in addresses
        copied.zero_()
    assert [bits(view) for view in views] == before


def test_what_is_packed_is_not_changed(values: ModuleType) -> None:
    value = {"a": [tensor(2), {"b": tensor(3)}]}
    kept = value["a"][1]
    values.pack(value)
    assert list(value) == ["a"] and value["a"][1] is kept and torch.is_tensor(kept["b"])


class Model:
    """Stands for what lives in one process only."""


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Model(), "model"),
        ([1, Model()], "model[1]"),
        ({"a": [(0, Model())]}, "model['a'][0][1]"),
        ([[tensor(1), {"control": Model()}]], "model[0][1]['control']"),
        ({1: {2, 3}}, "model[1]"),
    ],
    ids=["itself", "list", "nested", "conditioning", "set"],
)
def test_what_cannot_leave_is_named_with_its_place(
    value: Any, place: str, values: ModuleType
) -> None:
    with pytest.raises(InputError) as caught:
        values.pack(value, "model")
    message = str(caught.value)
    assert message.startswith(f"{place} is a ")
    assert "Model, which cannot leave" in message or "builtins.set, which cannot" in message
    assert "Collect after the node that uses it" in message
