"""A ComfyUI whose settings stand in fleet.yaml: wrong at first, then set right."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import prompts
from tests.support import Master, free_port, wait_until

pytestmark = pytest.mark.cluster

SHARE = "/comfyfleet/v1/share"
CONFIG = "/comfyfleet/v1/config"
WRONG = "settings:\n  share: true\n  workers: cpu\n  master: flase\n"


@pytest.fixture(scope="module")
def configured(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master without any setting in its environment."""
    base = tmp_path_factory.mktemp("configured")
    file_of(base).parent.mkdir(parents=True)
    file_of(base).write_text(WRONG)
    running = Master(comfyui, base, workers="")
    yield running
    running.close()


def file_of(base: Path) -> Path:
    return base / "user" / "comfyfleet" / "fleet.yaml"


def test_what_is_wrong_is_said_at_the_start_and_what_is_right_holds(configured: Master) -> None:
    path = file_of(configured.base)
    said = f"{path.resolve()}, line 4: settings.master is 'flase'; give true or false."
    state = configured.get(SHARE)
    assert state["on"] is False and state["note"] == said
    assert said in configured.log.read_text()
    with pytest.raises(urllib.error.HTTPError) as caught:
        configured.post(SHARE, {"on": True})
    assert said in caught.value.read().decode()
    path.write_text(WRONG.replace("flase", "ture"))
    with pytest.raises(urllib.error.HTTPError):
        configured.post(SHARE, {"on": True})
    assert configured.log.read_text().count("the queue is not shared: ") == 2, "each once"
    path.write_text(WRONG.replace("flase", "false"))
    shared: dict[str, Any] = configured.post(SHARE, {"on": True})
    assert shared == {"on": True, "master_computes": False, "note": ""}
    configured.run(prompts.demo())
    status = configured.get("/comfyfleet/v1/status")
    assert [worker["id"] for worker in status["workers"] if worker["id"] != "master"] == ["cpu-0"]


# By its routes.


def refusal(configured: Master, path: str, body: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        configured.post(path, body)
    assert caught.value.code == 400
    return str(json.load(caught.value)["error"])


def test_settings_are_shown_set_and_unset(configured: Master) -> None:
    shown = configured.post(f"{CONFIG}/settings/stagger", {"value": "2.5"})
    assert shown["settings"]["stagger"]["value"] == 2.5
    assert shown["settings"]["stagger"]["source"] == "fleet.yaml"
    assert configured.get(CONFIG) == shown
    configured.post(f"{CONFIG}/settings/stagger", {"value": None})
    assert configured.get(CONFIG)["settings"]["stagger"]["source"] == "default"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("settings/stagger", {"value": "soon"}, "stagger is 'soon'; give seconds, 0 to 86400"),
        ("settings/stager", {"value": "1"}, "no setting is called 'stager'"),
        ("settings/share", {"value": "true\nworkers: 9"}, "one line"),
        ("workers", {"name": "cpu-3", "url": "http://10.0.0.1"}, "is kept for workers"),
        ("workers", {"name": "a", "url": "http://me:secret@10.0.0.1"}, "give the address alone"),
        ("workers", {"name": "a", "url": "file:///etc"}, "begins with http:// or https://"),
        ("workers", {"name": "a", "url": "http://a", "token_file": "x"}, "'token_file'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_not_written(
    configured: Master, path: str, body: dict[str, Any], said: str
) -> None:
    before = file_of(configured.base).read_text()
    answer = refusal(configured, f"{CONFIG}/{path}", body)
    assert said in answer and "secret" not in answer
    assert file_of(configured.base).read_text() == before


def test_a_worker_that_is_added_is_looked_for_at_once(configured: Master) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    shown = configured.post(f"{CONFIG}/workers", {"name": "box", "url": url})
    assert shown["workers"][-1]["url"] == url
    reason = wait_until(lambda: reason_of(configured, "box"), "word of it")
    assert f"worker box cannot be used: {url}: no connection" in reason
    assert configured.delete(f"{CONFIG}/workers/box")["workers"] == []


def test_sharing_looks_for_workers_that_were_written_down_since(configured: Master) -> None:
    """As `comfyfleet config add-worker` does, which tells no running ComfyUI."""
    url = f"http://127.0.0.1:{free_port()}"
    path = file_of(configured.base)
    before = path.read_text()
    path.write_text(f"{before}\nworkers:\n  - name: attic\n    url: {url}\n")
    try:
        configured.post(SHARE, {"on": True})
        assert url in wait_until(lambda: reason_of(configured, "attic"), "word of it")
    finally:
        path.write_text(before)


def reason_of(configured: Master, name: str) -> str:
    status = configured.get("/comfyfleet/v1/status")["workers"]
    return next((each["reason"] for each in status if each["id"] == name), "")
