"""Settings from the environment: what is allowed, and what is said of the rest."""

from __future__ import annotations

import pytest

from comfyfleet.config import SETTINGS, SHARE, STAGGER
from comfyfleet.errors import InputError


@pytest.mark.parametrize(("text", "value"), [("", False), ("0", False), (" 1 ", True)])
def test_a_switch_is_0_or_1(text: str, value: bool) -> None:
    assert SHARE.read_switch({"COMFYFLEET_SHARE": text}) is value


@pytest.mark.parametrize("text", ["yes", "2", "-1", "on"])
def test_anything_else_says_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match=f"COMFYFLEET_SHARE is '{text}'; give 0 or 1"):
        SHARE.read_switch({"COMFYFLEET_SHARE": text})


@pytest.mark.parametrize(("text", "value"), [("", 0.0), ("2.5", 2.5), ("86400", 86400.0)])
def test_a_time_is_in_seconds(text: str, value: float) -> None:
    assert STAGGER.read_seconds({"COMFYFLEET_STAGGER": text}) == value


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "86401", "soon"])
def test_a_time_out_of_range_says_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match="give seconds, 0 to 86400"):
        STAGGER.read_seconds({"COMFYFLEET_STAGGER": text})


def test_each_setting_stands_in_the_table_once() -> None:
    names = [setting.env for setting in SETTINGS]
    assert len(set(names)) == len(names)
