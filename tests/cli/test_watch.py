"""The commands that ask a running ComfyUI: whom they ask, and what they say of its answer."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from comfyfleet.cli.logs import show_log
from comfyfleet.cli.master import MasterClient
from comfyfleet.cli.top import frame
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet import registry
from comfyfleet.fleet.insight import Fault, Snapshot, Task, WorkerStatus
from comfyfleet.fleet.registry import PREFIX, write_record
from comfyfleet.work import WorkerInfo
from tests.support import free_port, run_command

NOBODY = f"http://127.0.0.1:{free_port()}"

WRONG = {
    "share with neither": ("share", "maybe"),
    "an action that is none": ("worker", "cpu-0", "fly"),
    "no lines": ("logs", "cpu-0", "--lines", "0"),
    "no time between frames": ("top", "--interval", "0"),
    "no address": ("top", "--url", "here"),
}
SAID = {
    "share with neither": "share 'maybe': give on or off",
    "an action that is none": "choose one of enable, disable, restart, interrupt, free",
    "no lines": "--lines 0: give 1 or more",
    "no time between frames": "--interval 0: give seconds",
    "no address": "--url 'here': give an address such as http://127.0.0.1:8188",
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told(case: str) -> None:
    answer = run_command(*WRONG[case])
    assert answer.returncode == 2, answer.stderr
    assert SAID[case] in " ".join(answer.stderr.split())


@pytest.mark.parametrize(
    "args",
    [("share", "on"), ("worker", "all", "free"), ("logs", "cpu-0"), ("top", "--once")],
    ids=lambda args: args[0],
)
def test_where_nobody_answers(args: tuple[str, ...]) -> None:
    answer = run_command(*args, "--url", NOBODY)
    assert answer.returncode == 3, answer.stderr
    assert f"no ComfyUI answers at {NOBODY}" in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


# Whom they ask.


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for sessions that no other test, and no user, knows."""
    monkeypatch.setattr(registry, "sessions_root", lambda: tmp_path)
    return tmp_path


def fleet_at(root: Path, url: str, name: str = "a") -> None:
    folder = root / f"{PREFIX}{name}"
    folder.mkdir()
    info = WorkerInfo(
        id="cpu-0",
        device="cpu",
        device_name="CPU",
        pid=1,
        comfyui_version="0",
        log_file=str(folder / "x.log"),
    )
    write_record(folder, [info], url)


def test_the_one_with_a_fleet_is_asked(root: Path) -> None:
    assert MasterClient().url == "http://127.0.0.1:8188", "without any fleet"
    fleet_at(root, "http://127.0.0.1:9")
    fleet_at(root, "", "b")
    assert MasterClient().url == "http://127.0.0.1:9"
    assert MasterClient("https://elsewhere/").url == "https://elsewhere"


def test_one_of_several_must_be_chosen(root: Path) -> None:
    fleet_at(root, "http://127.0.0.1:9")
    fleet_at(root, "http://127.0.0.1:10", "b")
    with pytest.raises(InputError, match=r"10, http://127\.0\.0\.1:9; choose by --url"):
        MasterClient()


def test_a_fleet_of_a_command_takes_no_orders(root: Path) -> None:
    fleet_at(root, "")
    with pytest.raises(FleetError, match=rf"process {os.getpid()}\), which have no routes"):
        MasterClient()


# What is answered.


class Canned(BaseHTTPRequestHandler):
    """Answers with what the path names: a status and a body."""

    def do_GET(self) -> None:
        code, _, body = self.path.removeprefix("/comfyfleet/v1/").partition("/")
        self.send_response(int(code))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def client() -> Iterator[MasterClient]:
    with HTTPServer(("127.0.0.1", 0), Canned) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield MasterClient(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_answers_and_refusals(client: MasterClient) -> None:
    assert client.get('/200/{"on":true}') == {"on": True}
    with pytest.raises(InputError, match=r"^no$"):
        client.get('/404/{"error":"no"}')
    with pytest.raises(FleetError, match=r"^later$"):
        client.get('/503/{"error":"later"}')


@pytest.mark.parametrize("answer", ["/404/", "/404/[]", "/500/oops"])
def test_what_is_no_comfyfleet(client: MasterClient, answer: str) -> None:
    with pytest.raises(FleetError, match="has no such route of ComfyFleet"):
        client.get(answer)


def test_an_answer_that_is_no_json(client: MasterClient) -> None:
    with pytest.raises(FleetError, match="no ComfyUI answers"):
        client.get("/200/hello")


# The frame.


def drawn(status: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(frame(json.loads(json.dumps(status)), "http://x"))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 200])
def test_a_frame_shows_everybody_on_any_terminal(width: int) -> None:
    task = Task(run="r", unit=3, prompt_id="", started=0.0, fraction=0.42, step=5, steps=12)
    fault = Fault(message="no [bold]luck[/]\nTraceback", time=0.0)
    workers = (
        WorkerStatus(id="cuda10", state="busy", reason="", device="cuda:10", task=task),
        WorkerStatus(id="cpu-0", state="quarantined", reason="it failed", device="cpu"),
        WorkerStatus(id="cpu-1", state="idle", reason="", device="cpu", last_error=fault),
        WorkerStatus(id="box", state="idle", reason="", device="cpu", note="8 bits only"),
    )
    sharing = {"on": True, "master_computes": True, "note": "the journal is full"}
    snapshot = asdict(Snapshot(seq=1, time=300.0, workers=workers))
    text = drawn({"fleet": "running", "sharing": sharing, **snapshot}, width)
    for words in ("cuda10", "cuda:10", "busy", "42", "5/12", "quarantined", "journal is full"):
        assert words in text
    assert "cpu-0 is quarantined: it failed" in text
    assert "cpu-1 failed 5 min ago: no [bold]luck[/]" in text
    assert "Traceback" not in text
    assert "box: 8 bits only" in text


# Logs without a ComfyUI.


def test_the_log_of_a_commands_own_fleet(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet_at(root, "")
    (root / f"{PREFIX}a" / "x.log").write_text("one\ntwo [bold]\nthree\n")
    show_log("cpu-0", lines=2, follow=False, url=None)
    assert capsys.readouterr().out == "two [bold]\nthree\n"
    with pytest.raises(InputError, match=r"no worker is called 'cpu-7'; choose cpu-0\."):
        show_log("cpu-7", lines=2, follow=False, url=None)
    fleet_at(root, "", "b")
    with pytest.raises(InputError, match=r"several fleets have a worker cpu-0; its logs: .*x\.log"):
        show_log("cpu-0", lines=2, follow=False, url=None)
