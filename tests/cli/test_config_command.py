"""``comfyfleet config``, and the other commands that read fleet.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import prompts
from tests.support import run_command


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.yaml"


def config(path: Path, *args: str) -> str:
    """What the command prints; asserts that it succeeded."""
    answer = run_command("config", *args, "--config", str(path))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def refusal(*args: str) -> str:
    """What the command says of wrong input."""
    answer = run_command(*args)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr
    assert answer.stderr.startswith("comfyfleet: ")
    return answer.stderr


def test_settings_are_set_shown_and_unset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config(path, "set", "stagger", "2.5") == f"stagger is set in {path}\n"
    monkeypatch.setenv("COMFYFLEET_SHARE", "1")
    note = "note: COMFYFLEET_SHARE is set here, and wins over the file\n"
    assert config(path, "set", "share", "false") == f"share is set in {path}\n{note}"
    shown = json.loads(config(path, "show", "--json"))
    found = {key: (each["value"], each["source"]) for key, each in shown["settings"].items()}
    assert found["stagger"] == (2.5, "fleet.yaml")
    assert found["share"] == (True, "environment")
    assert found["master"] == (True, "default")
    assert shown["path"] == str(path)
    config(path, "unset", "stagger")
    assert path.read_text() == "settings:\n  share: false\n"


def test_workers_are_added_shown_and_removed(path: Path, tmp_path: Path) -> None:
    token = tmp_path / "studio.token"
    token.write_text("hunter2")
    token.chmod(0o644)
    files = ("--token-file", str(token), "--ca", "/elsewhere/studio.pem")
    said = config(path, "add-worker", "studio", "https://[::1]:8188", *files)
    assert f"worker studio is in {path}\nnote: worker studio: token_file" in said
    assert "token_file: studio.token\n    ca: /elsewhere/studio.pem\n" in path.read_text()
    shown = config(path, "show")
    assert "https://[::1]:8188" in shown and "studio.token" in shown and "hunter2" not in shown
    config(path, "remove-worker", "studio")
    assert json.loads(config(path, "show", "--json"))["workers"] == []


def test_what_is_taken_over_is_printed_and_so_is_the_rest(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "gpu_config.json"
    worker = {"name": "Studio \x1b[2J", "host": "10.0.0.5", "port": 8188, "type": "remote"}
    data = {
        "workers": [{**worker, "extra_args": "--lowvram"}],
        "settings": {"master_delegate_only": True, "debug": False},
    }
    source.write_text(json.dumps(data))
    said = config(path, "import", str(source))
    assert said.startswith(f"taken over into {path}:\n  worker Studio-2J: http://10.0.0.5:8188\n")
    assert "  master: false\nnot taken over:\n  settings.debug (False): ComfyUI's own" in said
    assert "  worker Studio ?[2J: extra_args (--lowvram): start that ComfyUI with them\n" in said


def test_the_file_lies_in_the_user_folder_of_the_comfyui(comfyui: Path) -> None:
    answer = run_command("config", "path", "--comfyui", str(comfyui))
    assert answer.stdout == f"{comfyui.resolve()}/user/comfyfleet/fleet.yaml\n"


def test_what_is_wrong_is_refused(path: Path) -> None:
    file = ("--config", str(path))
    assert "no setting is called 'sahre'" in refusal("config", "set", "sahre", "1", *file)
    assert f"--config {path}: there is no such file" in refusal("config", "show", *file)
    path.write_text("settings:\n  sahre: true\n")
    said = f"{path}, line 2: settings.sahre is no key that there is; the nearest is 'share'."
    for command in (("config", "show"), ("doctor",), ("config", "set", "share", "1")):
        assert said in refusal(*command, *file)


def test_run_takes_its_workers_from_option_variable_and_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("settings:\n  workers: cuda:97\n")
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(prompts.demo()))
    command = ("run", str(workflow), "--config", str(path), "--out", str(tmp_path / "out"))
    assert "no device 'cuda:97' here" in refusal(*command)
    monkeypatch.setenv("COMFYFLEET_WORKERS", "cuda:98")
    assert "no device 'cuda:98' here" in refusal(*command)
    assert "no device 'cuda:99' here" in refusal(*command, "--workers", "cuda:99")
    monkeypatch.setenv("COMFYFLEET_WORKERS", "gpu")
    assert "COMFYFLEET_WORKERS is 'gpu'; give auto, a number" in refusal(*command)
