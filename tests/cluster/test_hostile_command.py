"""What the command says of workers on the network that cannot be used: a sentence and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.client.hostile import SAVING, Handler, Hostile, saved, served
from tests.support import free_port, run_command

pytestmark = pytest.mark.cluster


def answering(data: Any) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(data)

    return answer


def run(tmp_path: Path, workers: dict[str, str], prompt: Any = SAVING) -> str:
    """What the command says; it fails."""
    (tmp_path / "workflow.json").write_text(json.dumps(prompt))
    lines = [f"  - name: {name}\n    url: {url}\n" for name, url in workers.items()]
    (tmp_path / "fleet.yaml").write_text("workers:\n" + "".join(lines))
    answer = run_command(
        *("run", str(tmp_path / "workflow.json"), "--out", str(tmp_path / "out")),
        *("--config", str(tmp_path / "fleet.yaml"), "--workers", "0"),
    )
    assert answer.returncode in (1, 2, 3), answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return " ".join((answer.stdout + answer.stderr).split())


def test_addresses_that_are_no_worker(tmp_path: Path, nothing_left: None) -> None:
    page, old, strict = Hostile(), Hostile(), Hostile()
    page.instead["/system_stats"] = answering(["hello"])
    old.instead["/system_stats"] = answering({"system": {"comfyui_version": "0.3.40"}})

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=401)

    strict.instead["/system_stats"] = refuse
    with served(page, old, strict) as (page_url, old_url, strict_url):
        nobody = f"http://127.0.0.1:{free_port()}"
        workers = {"nobody": nobody, "page": page_url, "old": old_url, "strict": strict_url}
        said = run(tmp_path, workers)
    assert f"worker nobody cannot be used: {nobody}: no connection" in said
    assert "is ComfyUI running there, with --listen?" in said
    assert f"worker page cannot be used: {page_url}: it answers (200), but not as" in said
    assert f"{old_url} is ComfyUI 0.3.40; 0.3.75 is needed: update." in said
    assert f"{strict_url} does not let us in (401); give its token." in said


def test_a_pack_that_is_missing_there(tmp_path: Path, nothing_left: None) -> None:
    with served(Hostile()) as (url,):
        said = run(tmp_path, {"box": url}, SAVING | {"5": {"class_type": "Odd", "inputs": {}}})
    assert "it lacks node class Odd" in said


def test_a_file_that_leads_elsewhere_does_not_come_home(tmp_path: Path, nothing_left: None) -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved("../../evil.png")]}
    with served(hostile) as (url,):
        said = run(tmp_path, {"box": url})
    assert "which is no name of a file" in said
    assert "worker box: without this extension: pictures only, in 8 bits" in said
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.parent.glob("*evil*"))
