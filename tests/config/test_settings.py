"""Every setting: environment before fleet.yaml before default, and what is said of wrong values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyfleet import config
from comfyfleet.config import SETTINGS, SHARE, STAGGER, WORKERS, Config, Setting, load
from comfyfleet.errors import InputError

#: By key: as the file has it and what that means, as the environment has it and what that means,
#: and what the file may not have. No value is the default.
VALUES: dict[str, tuple[str, Any, str, Any, str]] = {
    "workers": ("[cuda:0, cpu]", "cuda:0,cpu", "2", "2", "cuda0"),
    "share": ("true", True, "1", True, "on"),
    "master": ("false", False, "0", False, "0"),
    "journal": ("false", False, "false", False, "'false'"),
    "stagger": ("2.5", 2.5, " 20 ", 20.0, "-1"),
    "branches": ("true", True, "true", True, "[true]"),
    "hosts": ("[a.example, b]", "a.example,b", " c.example ", "c.example", "https://a.example"),
    "cluster": ("head.lan", "head.lan", " 10.0.0.1:7000 ", "10.0.0.1:7000", "ray://head:10001"),
    "insecure_cluster": ("true", True, "1", True, "yes please"),
    "accept_models": ("true", True, "1", True, "safetensors"),
}
IN_FILE = [setting for setting in SETTINGS if setting.key]


def name_of(setting: Setting[Any]) -> str:
    return setting.key


def saved(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_setting_of_the_file_is_tested() -> None:
    assert [setting.key for setting in IN_FILE] == list(VALUES)


@pytest.mark.parametrize("setting", IN_FILE, ids=name_of)
def test_the_file_wins_over_the_default(setting: Setting[Any], tmp_path: Path) -> None:
    given, value, *_ = VALUES[setting.key]
    found = load(saved(tmp_path, f"settings:\n  {setting.key}: {given}\n"), {})
    assert found.value(setting) == value != setting.default
    assert type(found.value(setting)) is type(setting.default)
    assert found.source(setting) == "fleet.yaml"


@pytest.mark.parametrize("setting", IN_FILE, ids=name_of)
def test_the_environment_wins_over_the_file(setting: Setting[Any], tmp_path: Path) -> None:
    *_, text, value, _ = VALUES[setting.key]
    path = saved(tmp_path, f"settings:\n  {setting.key}: {config.text_of(setting.default)}\n")
    found = load(path, {setting.env: text})
    assert found.value(setting) == value != setting.default
    assert found.source(setting) == "environment"


@pytest.mark.parametrize("setting", IN_FILE, ids=name_of)
def test_what_is_empty_counts_as_not_set(setting: Setting[Any], tmp_path: Path) -> None:
    found = load(saved(tmp_path, f"settings:\n  {setting.key}:\n"), {setting.env: " "})
    assert found.value(setting) == setting.default
    assert found.source(setting) == "default"


@pytest.mark.parametrize("setting", IN_FILE, ids=name_of)
def test_a_wrong_value_is_refused_with_line_and_key(setting: Setting[Any], tmp_path: Path) -> None:
    wrong = VALUES[setting.key][4]
    path = saved(tmp_path, f"# mine\nsettings:\n  {setting.key}: {wrong}\n")
    with pytest.raises(InputError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}, line 3: settings.{setting.key} is ")
    assert str(caught.value).endswith(f"; give {setting.kind.allowed}.")


@pytest.mark.parametrize("setting", IN_FILE, ids=name_of)
def test_a_wrong_value_in_the_environment_names_the_variable(setting: Setting[Any]) -> None:
    with pytest.raises(InputError) as caught:
        Config(environ={setting.env: "nonsense!"}).value(setting)
    allowed = setting.kind.allowed
    assert str(caught.value) == f"{setting.env} is 'nonsense!'; give {allowed}."


@pytest.mark.parametrize("text", ["2", "-1", "maybe"])
def test_a_switch_is_nothing_else(text: str) -> None:
    with pytest.raises(InputError, match=f"COMFYFLEET_SHARE is '{text}'; give true or false"):
        Config(environ={"COMFYFLEET_SHARE": text}).value(SHARE)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "86401", "soon"])
def test_a_time_out_of_range_says_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match="give seconds, 0 to 86400"):
        Config(environ={"COMFYFLEET_STAGGER": text}).value(STAGGER)


@pytest.mark.parametrize("given", ["auto", "0", "3", "cpu", "[]", "[cuda:1, cuda:2]", "mps"])
def test_workers_in_the_file(given: str, tmp_path: Path) -> None:
    path = saved(tmp_path, f"settings: {{workers: {given}}}")
    if given == "[]":
        with pytest.raises(InputError, match="workers is a list; give auto"):
            load(path, {})
    else:
        text = given.strip("[]").replace(", ", ",")
        assert load(path, {}).value(WORKERS) == text


def test_each_name_stands_in_the_table_once() -> None:
    for name in ("key", "env"):
        names = [getattr(setting, name) for setting in SETTINGS if getattr(setting, name)]
        assert len(set(names)) == len(names)
