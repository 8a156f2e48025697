from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.fleet import registry
from comfyfleet.fleet.registry import PREFIX, FleetRecord, read_records, write_record
from comfyfleet.work import WorkerInfo

WORKERS = [
    WorkerInfo(
        id=f"cpu-{number}",
        device="cpu",
        device_name="CPU, 4 cores",
        pid=1000 + number,
        comfyui_version="0.3.75",
        log_file=f"/tmp/x/cpu-{number}/comfyui.log",
    )
    for number in range(2)
]

URL = "http://127.0.0.1:8188"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for sessions that no other test, and no user, knows."""
    monkeypatch.setattr(registry, "sessions_root", lambda: tmp_path)
    return tmp_path


def session(root: Path, name: str = "a") -> Path:
    folder = root / f"{PREFIX}{name}"
    folder.mkdir()
    return folder


def forge(root: Path, text: str | bytes | dict[str, Any], name: str = "a") -> None:
    """Put any text in the place of a record."""
    data = json.dumps(text) if isinstance(text, dict) else text
    path = session(root, name) / "session.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_is_written_is_read(root: Path) -> None:
    folder = session(root)
    write_record(folder, WORKERS, URL)
    expected = FleetRecord(
        owner_pid=os.getpid(), folder=str(folder), workers=tuple(WORKERS), url=URL
    )
    assert read_records() == [expected]
    assert [path.name for path in folder.iterdir()] == ["session.json"], "no draft is left"


def test_a_record_is_replaced_as_workers_come_and_go(root: Path) -> None:
    folder = session(root)
    for workers in ([], WORKERS, WORKERS[:1]):
        write_record(folder, workers, URL)
        assert [record.workers for record in read_records()] == [tuple(workers)]


def test_all_fleets_in_order(root: Path) -> None:
    for name in "bca":
        write_record(session(root, name), WORKERS, URL)
    assert [record.folder[-1] for record in read_records()] == ["a", "b", "c"]


def test_nothing_runs_where_nothing_is(root: Path) -> None:
    session(root, "without-record")
    (root / "another-folder").mkdir()
    (root / "another-folder" / "session.json").write_text("{}")
    assert read_records() == []


def test_a_dead_owner_has_no_fleet(root: Path) -> None:
    forge(root, {"owner_pid": dead_pid(), "folder": "x", "workers": []}, "dead")
    write_record(session(root, "alive"), WORKERS, URL)
    assert [record.owner_pid for record in read_records()] == [os.getpid()]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users are told apart by their number")
def test_what_another_user_put_there_is_not_even_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(session(root), WORKERS, URL)
    forge(root, "not JSON", "b")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert read_records() == []


def test_a_record_that_vanishes_is_no_error(root: Path) -> None:
    (session(root) / "session.json").symlink_to(root / "gone")
    write_record(session(root, "b"), WORKERS, URL)
    assert [record.folder[-1] for record in read_records()] == ["b"]


DAMAGED: dict[str, str | bytes | dict[str, Any]] = {
    "empty": "",
    "no JSON": "{",
    "no text": b"\xff\xfe",
    "a list": "[]",
    "no workers": {"owner_pid": 1, "folder": "x"},
    "no owner": {"folder": "x", "workers": []},
    "an owner's name": {"owner_pid": "me", "folder": "x", "workers": []},
    "a newer field": {"owner_pid": 1, "folder": "x", "workers": [], "since": 3},
    "another worker": {"owner_pid": 1, "folder": "x", "workers": [{"id": "cpu-0"}]},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record_hides_no_other(case: str, root: Path) -> None:
    forge(root, DAMAGED[case])
    write_record(session(root, "b"), WORKERS, URL)
    assert [record.folder[-1] for record in read_records()] == ["b"]


def test_what_killed_masters_have_left_is_cleared_away(root: Path) -> None:
    """Their records, and their sockets of workers that dialled in."""
    registry.write_master(URL, root / "user")
    own = registry.door_for("vm-1")
    folder = own.parent
    own.touch()
    (folder / "999999999-vm.sock").touch()
    (folder / "999999999.json").write_text("{}")
    assert [record.url for record in registry.read_masters()] == [URL]
    assert sorted(each.name for each in folder.iterdir()) == [own.name, f"{os.getpid()}.json"]
    assert len(str(own)) < 100 + len(str(root)) and folder.stat().st_mode & 0o077 == 0
