"""Values as JSON: what comes back is what went, and nonsense is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.client.codec import from_json, to_json
from comfyfleet.errors import InputError
from comfyfleet.work import Packed, TensorRef, VideoRef

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS | st.just(TensorRef(0, "float32", (2, 3))),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(
            VideoRef,
            st.fixed_dictionaries(
                {"frame_rate": st.just("24000/1001")}, optional={"images": inner}
            ),
        )
    ),
    max_leaves=10,
)


@given(VALUES)
def test_any_value_comes_back(value: object) -> None:
    assert from_json(json.loads(json.dumps(to_json(Packed(value)))), [24]) == value


def test_arrays_keep_type_and_shape() -> None:
    value = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.float32(0.1)}
    found = from_json(json.loads(json.dumps(to_json(Packed(value)))), [])
    assert found["a"].dtype == np.int16 and (found["a"] == value["a"]).all()
    assert type(found["b"]) is np.float32 and found["b"] == value["b"]


@pytest.mark.parametrize(
    "data",
    [
        {"tensor": [0, "float32", [7]]},
        {"tensor": [0, "object", [6]]},
        {"tensor": [9, "float32", [6]]},
        {"tensor": [0, "float32", [-1, -6]]},
        {"tensor": [0, "float32", [True, 6]]},
        {"array": ["|O", [1], "AAAAAAAAAAA=", False]},
        {"array": ["<f4", [2], "AAAA", False]},
        {"pickle": "gASV"},
        {"dict": [[["a"], 1]]},
        {},
        {"tuple": 3},
    ],
    ids=str,
)
def test_nonsense_is_refused(data: object) -> None:
    with pytest.raises(InputError, match=r"makes no sense|do not travel"):
        from_json(data, [24])


def test_depth_has_a_limit() -> None:
    nested: object = 1
    for _ in range(500):
        nested = [nested]
    with pytest.raises(InputError):
        from_json(nested, [])
    with pytest.raises(InputError, match="nested deeper"):
        to_json(Packed(nested))


def test_an_object_of_a_pack_does_not_travel() -> None:
    with pytest.raises(InputError, match="a Odd cannot travel"):
        to_json(Packed([type("Odd", (), {})()]))
