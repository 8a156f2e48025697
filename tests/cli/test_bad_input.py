"""Wrong input of every kind: one clear message, an exit code, and nothing left running."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import prompts
from tests.support import marked_processes, run_command


def saved(tmp_path: Path, prompt: Any) -> str:
    path = tmp_path / "workflow.json"
    path.write_text(prompt if isinstance(prompt, str) else json.dumps(prompt), encoding="utf-8")
    return str(path)


def changed(change: Callable[[Any], object]) -> Any:
    prompt = prompts.demo()
    change(prompt)
    return prompt


BEFORE_ANY_WORKER = {
    "not JSON": ("{", (), "JSON"),
    "an empty graph": ({}, (), "empty"),
    "UI format": ({"nodes": [], "links": []}, (), "Export (API)"),
    "a missing link": (
        changed(lambda p: p["6"]["inputs"].update(samples=["99", 0])),
        (),
        "node 6 (VAEDecode)",
    ),
    "no class": (changed(lambda p: p["6"].pop("class_type")), (), "node 6"),
    "count 0": (prompts.demo(), ("--count", "0"), "--count 0: give 1 or more"),
    "nothing to vary": (
        {"1": {"class_type": "FleetDemoModel", "inputs": {}}},
        ("--count", "2"),
        "all runs would be equal",
    ),
    "a seed out of range": (prompts.demo(), ("--seed", "-1"), "--seed -1: give 0 to"),
    "set without a value": (prompts.demo(), ("--set", "5.steps"), "NODE.INPUT=VALUE"),
    "set on no node": (prompts.demo(), ("--set", "77.steps=1"), "5 (KSampler)"),
    "set on no input": (prompts.demo(), ("--set", "5.stepz=1"), "steps"),
    "no such device": (prompts.demo(), ("--workers", "cuda:7"), "no device 'cuda:7'"),
    "no worker": (prompts.demo(), ("--workers", "0"), "--workers 0: nothing runs"),
    "too few workers": (prompts.demo(), ("--workers", "-2"), "-2 workers"),
    "no such ComfyUI": (prompts.demo(), ("--comfyui", "/nowhere"), "'/nowhere' is no ComfyUI"),
    "nothing to resume": (prompts.demo(), ("--resume",), "Start without --resume"),
    "a missing picture": (
        changed(
            lambda p: p.update({"9": {"class_type": "LoadImage", "inputs": {"image": "no.png"}}})
        ),
        (),
        "node 9 (LoadImage)",
    ),
}

BY_COMFYUI = {
    "an unknown class": (
        changed(lambda p: p["6"].update(class_type="NoSuchNode")),
        "node 6 (NoSuchNode): this ComfyUI has no such node class",
    ),
    "a missing model": (
        changed(
            lambda p: p.update(
                {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "no.ckpt"}}}
            )
        ),
        "node 1 (CheckpointLoaderSimple): input ckpt_name: Value not in list",
    ),
    "a wrong type": (
        changed(lambda p: p["6"]["inputs"].update(vae=["1", 0])),
        "node 6 (VAEDecode): input vae: Return type mismatch",
    ),
}


def sessions() -> set[str]:
    """Of fleets; other tests of this process may have one, whose processes come and go."""
    return {session for _, session in marked_processes()}


@pytest.mark.parametrize("case", BEFORE_ANY_WORKER)
def test_refused_before_any_worker_starts(case: str, tmp_path: Path) -> None:
    prompt, options, message = BEFORE_ANY_WORKER[case]
    before = sessions()
    out = ("--out", str(tmp_path / "out"))
    answer = run_command("run", saved(tmp_path, prompt), *out, *options)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert sessions() <= before
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
@pytest.mark.parametrize("case", BY_COMFYUI)
def test_refused_by_comfyuis_own_validation(case: str, tmp_path: Path, nothing_left: None) -> None:
    prompt, message = BY_COMFYUI[case]
    out = ("--out", str(tmp_path / "out"), "--workers", "1")
    answer = run_command("run", saved(tmp_path, prompt), *out)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_missing_workflow_file_is_named() -> None:
    answer = run_command("run", "/nowhere/workflow.json")
    assert answer.returncode == 2 and "/nowhere/workflow.json" in answer.stderr


def test_an_unknown_option_is_named() -> None:
    answer = run_command("run", "workflow.json", "--wrokers", "2")
    assert answer.returncode == 2 and "--wrokers" in answer.stderr


@pytest.mark.cluster
def test_a_worker_that_cannot_start_shows_the_end_of_its_log(
    tmp_path: Path, comfyui: Path, nothing_left: None
) -> None:
    """A copy of ComfyUI whose server module is broken."""
    broken = tmp_path / "comfyui"
    broken.mkdir()
    for entry in comfyui.iterdir():
        if entry.name not in ("server.py", "custom_nodes"):
            (broken / entry.name).symlink_to(entry)
    (broken / "server.py").write_text("raise RuntimeError('this server is broken')\n")
    answer = run_command(
        "run", saved(tmp_path, prompts.demo()), "--workers", "1", "--comfyui", str(broken)
    )
    assert answer.returncode == 3, answer.stderr
    assert "worker cpu-0 (cpu) could not start" in answer.stderr
    assert "this server is broken" in answer.stderr


def test_version_and_status_answer() -> None:
    assert run_command("--version").stdout.startswith("comfyfleet 0.")
    assert run_command("status").returncode == 0
