"""What is taken for sound, and for pictures, of what a worker elsewhere returned."""

from __future__ import annotations

from typing import Any

import pytest

from comfyfleet.client.forms import require_forms
from comfyfleet.errors import InputError
from comfyfleet.work import Packed, TensorRef

WAVE = TensorRef(0, "float32", (1, 2, 44_100))


def sound(**changes: Any) -> Packed:
    return Packed({"audio": [{"waveform": WAVE, "sample_rate": 44_100} | changes]})


def test_sound_and_other_values_pass() -> None:
    require_forms(sound(), "http://box")
    require_forms(
        sound(waveform=TensorRef(0, "float32", (1, 2, 0)), more="of a pack"), "http://box"
    )
    require_forms(Packed({"value": [TensorRef(0, "float32", (3,)), None]}), "http://box")


@pytest.mark.parametrize(
    "wrong",
    [
        {"waveform": TensorRef(0, "float32", (2, 44_100))},
        {"waveform": None},
        {"sample_rate": 0},
        {"sample_rate": 44_100.5},
        {"sample_rate": True},
    ],
)
def test_what_is_no_sound_is_refused_with_its_form(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"http://box returned audio that is none .*sample_rate"):
        require_forms(sound(**wrong), "http://box")
