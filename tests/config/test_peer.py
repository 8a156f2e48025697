"""What becomes of a gpu_config.json of ComfyUI-Distributed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.config import MASTER_COMPUTES, WORKERS, Import, WorkerEntry, import_file, load
from comfyfleet.config.peer import plan_import
from comfyfleet.errors import InputError

#: As version 1.4.4 of it writes the file.
FRESH: dict[str, Any] = {
    "master": {"host": ""},
    "workers": [],
    "settings": {
        "debug": False,
        "auto_launch_workers": False,
        "stop_workers_on_master_exit": True,
        "master_delegate_only": False,
        "websocket_orchestration": True,
        "worker_probe_concurrency": 8,
        "worker_prep_concurrency": 4,
        "media_sync_concurrency": 2,
        "media_sync_timeout_seconds": 120,
    },
    "tunnel": {"status": "stopped", "public_url": "", "pid": None},
}


def worker(**given: Any) -> dict[str, Any]:
    """One of the peer's workers."""
    usual = {"id": "1", "name": "Worker 1", "host": "10.0.0.5", "port": 8188, "cuda_device": 1}
    return {**usual, "enabled": True, "extra_args": "", "type": "remote", **given}


def planned(*workers: dict[str, Any], present: tuple[WorkerEntry, ...] = (), **rest: Any) -> Import:
    return plan_import({"workers": list(workers), **rest}, present)


def test_a_fresh_file_leaves_nothing_out() -> None:
    done = plan_import(FRESH)
    assert done.workers == [] and done.settings == {"master": True}
    said = {line.split(":")[0].split(" (")[0] for line in done.left}
    assert said == {
        *(f"settings.{key}" for key in FRESH["settings"] if key != "master_delegate_only"),
        "tunnel",
    }


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://10.0.0.5:8188"),
        (
            {"host": "x.proxy.runpod.net", "port": 443, "type": "cloud"},
            "https://x.proxy.runpod.net",
        ),
        ({"host": "x.example", "port": 8443, "type": "cloud"}, "https://x.example:8443"),
        ({"port": 443}, "https://10.0.0.5"),
        ({"host": "https://x/", "port": 443}, "https://x"),
        ({"host": "http://x:8188", "port": 8188}, "http://x:8188"),
        ({"port": "80"}, "http://10.0.0.5"),
        ({"port": None}, "http://10.0.0.5"),
        ({"type": "remote", "host": "localhost"}, "http://localhost:8188"),
    ],
)
def test_workers_on_the_network_are_taken_over(given: dict[str, Any], url: str) -> None:
    (entry,) = planned(worker(**given)).workers
    assert (entry.name, entry.url, entry.enabled) == ("Worker-1", url, True)


def test_one_that_is_switched_off_stays_so() -> None:
    assert planned(worker(enabled=False)).workers[0].enabled is False


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Studio PC", "Studio-PC"),
        ("<script>alert(1)</script>", "script-alert-1-script"),
        ("", "1"),
        ("all", "worker-all"),
        ("cuda0", "worker-cuda0"),
        ("画", "worker"),
        ("x" * 200, "x" * 50),
    ],
)
def test_names_become_names_that_are_allowed(name: str, ours: str) -> None:
    assert planned(worker(name=name)).workers[0].name == ours


def test_equal_names_get_numbers() -> None:
    present = (WorkerEntry(name="Worker-1", url="http://there"),)
    done = planned(worker(), worker(port=8189), present=present)
    assert [entry.name for entry in done.workers] == ["Worker-1-2", "Worker-1-3"]


def test_an_address_that_is_there_is_left() -> None:
    present = (WorkerEntry(name="studio", url="http://10.0.0.5:8188"),)
    done = planned(worker(), present=present)
    assert done.workers == []
    assert done.left == ["worker Worker 1: http://10.0.0.5:8188 is there as studio"]


def test_local_workers_become_devices() -> None:
    done = planned(
        worker(type="local", host="", cuda_device=1),
        worker(type="local", cuda_device="3"),
        {"name": "old", "cuda_device": 2, "port": 8190},
        worker(name="off", type="local", cuda_device=4, enabled=False),
        worker(name="none", type="local", cuda_device=None),
    )
    assert done.settings == {"workers": "cuda:1,cuda:3,cuda:2"}
    assert done.left == [
        "worker off: is switched off; its cuda_device is 4",
        "worker none: has no cuda_device; add its device to `workers` yourself",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra_args": "--lowvram"}, "extra_args (--lowvram): start that ComfyUI with them"),
        ({"api_key": "hunter2"}, "api_key: is not known here"),
        ({"host": "a b"}, "url is no address"),
        ({"host": "user:hunter2@x"}, "url holds a user name or password"),
        ({"host": None}, "url is no address"),
        ({"enabled": "yes"}, "enabled is 'yes'; give true or false"),
    ],
)
def test_what_is_not_taken_over_is_listed(given: dict[str, Any], said: str) -> None:
    done = planned(worker(**given))
    (line,) = done.left
    assert line.startswith(f"worker Worker 1: {said}") and "hunter2" not in line


def test_parts_that_nobody_knows_are_listed_without_their_values() -> None:
    rest: dict[str, Any] = {
        "secret": "hunter2",
        "managed_processes": {"1": {"pid": 7}},
        "master": {"cuda_device": 0, "extra_args": "--fast", "x": "hunter2"},
        "settings": {"worker_timeout_seconds": 60, "y": "hunter2", "master_delegate_only": "no"},
    }
    done = planned(7, **rest)  # type: ignore[arg-type]
    assert done.settings == {}
    assert [line.split(": ")[0] for line in done.left] == [
        "settings.worker_timeout_seconds (60)",
        "settings.y",
        "settings.master_delegate_only",
        "workers[0]",
        "master.cuda_device (0)",
        "master.extra_args (--fast)",
        "master.x",
        "secret",
        "managed_processes",
    ]


def test_a_file_is_taken_over_into_ours(tmp_path: Path) -> None:
    source, path = tmp_path / "gpu_config.json", tmp_path / "fleet.yaml"
    path.write_text("# mine\nsettings:\n  workers: cuda:7 # old\n")
    rest = {**FRESH, "settings": {"master_delegate_only": True}}
    workers = [worker(), worker(type="local", cuda_device=2)]
    source.write_text(json.dumps({**rest, "workers": workers}))
    done = import_file(path, source)
    assert "settings.workers of fleet.yaml was 'cuda:7' before" in done.left
    found = load(path, {})
    assert found.workers == done.workers and len(done.workers) == 1
    assert found.value(MASTER_COMPUTES) is False and found.value(WORKERS) == "cuda:2"
    assert path.read_text().startswith("# mine\n")
    before = path.read_text()
    import_file(path, source)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{\n", "line 2: is no JSON"),
        ("[]", "is no gpu_config.json: it has none of master, workers, settings"),
        ('{"1": {}}', "is no gpu_config.json: it has none of"),
        ('{"workers": {"1": {}}}', "is no gpu_config.json: its workers has another form"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_another_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    source, path = tmp_path / "gpu_config.json", tmp_path / "fleet.yaml"
    source.write_text(text)
    with pytest.raises(InputError) as caught:
        import_file(path, source)
    assert said in str(caught.value)
    assert not path.exists()


def test_nothing_is_taken_over_into_a_file_that_is_wrong(tmp_path: Path) -> None:
    source, path = tmp_path / "gpu_config.json", tmp_path / "fleet.yaml"
    source.write_text(json.dumps(FRESH))
    path.write_text("workers: [7]\n")
    with pytest.raises(InputError, match="line 1: workers"):
        import_file(path, source)
    assert path.read_text() == "workers: [7]\n"


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file; give the gpu_config"):
        import_file(tmp_path / "fleet.yaml", tmp_path / "none.json")
