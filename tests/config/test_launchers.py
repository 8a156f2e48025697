"""What may stand below ``launchers:``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.config import LauncherEntry, load
from comfyfleet.errors import InputError
from tests.cloud_bed.bed import launcher, written


def read(tmp_path: Path, **changes: Any) -> LauncherEntry:
    entry = launcher(tmp_path, **changes)
    given = {key: value for key, value in entry.items() if value is not None}
    return load(written(tmp_path / "fleet.yaml", given)).launcher("rented")


def test_words_of_a_provider_stay_as_they_are(tmp_path: Path) -> None:
    """Its JSON, its own double braces, and what a shell would read otherwise."""
    env = '{"TOKEN": "{{ RUNPOD_SECRET_comfyfleet }}", "B": "{{x}}"}'
    words = ["runpodctl", "--name", "{name}", "--env", env, "$(id); rm *"]
    assert read(tmp_path, start=words).start == words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "runpodctl create {name}"}, "launchers[0].start is wrong; give a list of words"),
        ({"start": []}, "launchers[0].start is wrong"),
        ({"start": ["run", ""]}, "launchers[0].start[1] is wrong"),
        ({"start": ["run"]}, "launchers[0].start lacks {name}"),
        ({"stop": ["end", "{name}"]}, "launchers[0].stop lacks {id}"),
        ({"stop": ["end", "{id}", "{PATH}"]}, "has {PATH}, which stands for nothing"),
        ({"list": ["list", "{id}"]}, "launchers[0].list has {id}"),
        ({"list": ["list", "--api-key=hunter2"]}, "holds a secret"),
        ({"list": ["list", "--token", "hunter2"]}, "holds a secret"),
        ({"url": "ftp://{id}"}, "begins with http"),
        ({"url": "https://me:hunter2@{id}"}, "holds a user name or password"),
        ({"url": "https://x/?token={id}"}, "holds a ?"),
        ({"token_env": None}, "launchers[0] needs a token"),
        ({"token_file": "x"}, "launchers[0] needs a token"),
        ({"max": 0}, "launchers[0].max is wrong; give a number from 1 to 100"),
        ({"start_timeout": 0}, "launchers[0].start_timeout is wrong"),
        ({"shell": True}, "launchers[0].shell is no key"),
        ({"token": "hunter2"}, "secrets do not belong into this file"),
    ],
)
def test_what_is_wrong_is_said(changes: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value) and "hunter2" not in str(caught.value)


def test_two_of_one_name(tmp_path: Path) -> None:
    path = written(tmp_path / "fleet.yaml", launcher(tmp_path), launcher(tmp_path))
    with pytest.raises(InputError, match="stands twice; give each launcher its own"):
        load(path)


def test_the_documented_example_is_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "fleet.yaml").write_text(example)
    found = load(tmp_path / "fleet.yaml").launcher("runpod")
    assert found.start[3:5] == ["--name", "{name}"] and found.stop[-1] == "{id}"
