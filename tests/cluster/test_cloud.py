"""A machine is rented, works, and is given back; only the cloud is of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from comfyfleet.config import load
from comfyfleet.fleet import Fleet, Host
from tests.cloud_bed.bed import TOKEN, launcher, machines, written
from tests.queue_bed.bed import picture
from tests.remote_bed.bed import begin, pixels, results, returning
from tests.support import COMFYFLEET, lives, run_command, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def cloud(
    tmp_path: Path, comfyui: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> Path:
    folder = tmp_path / "cloud"
    folder.mkdir()
    monkeypatch.setenv("COMFYUI", str(comfyui))
    monkeypatch.setenv("RENTED_TOKEN", TOKEN)
    return folder


def test_a_machine_is_rented_works_and_is_given_back(
    cloud: Path, comfyui: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "fleet.yaml", launcher(cloud))
    started = run_command("cloud", "start", "rented", "--config", str(path))
    assert started.returncode == 0, started.stderr
    (machine,) = machines(cloud)
    assert f"create {machine['name']}" in started.stderr and TOKEN not in started.stderr
    shown = run_command("cloud", "list", "--config", str(path), "--json")
    (row,) = json.loads(shown.stdout)
    assert (row["id"], row["state"]) == (machine["id"], "worker")

    host = Host(comfyui=comfyui, cwd=Path.cwd())
    with Fleet([], host, remotes=load(path).remotes()) as fleet:
        (result,) = results(begin(fleet, returning(picture(255, 16), ["1", 0])))
        assert pixels(result)[0, 0, 0, 2] == 1.0

    for _ in range(2):  # the second time there is nothing left to do
        stopped = run_command("cloud", "stop", "rented", "all", "--config", str(path))
        assert stopped.returncode == 0, stopped.stderr
    wait_until(lambda: not lives(machine["pid"]), "the machine to end")
    assert machines(cloud) == [] and load(path).workers == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://{no.address.yet}"])
def test_an_interrupted_start_leaves_no_machine(url: str, cloud: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "fleet.yaml", launcher(cloud, url=url))
    log = tmp_path / "log"
    command = [str(COMFYFLEET), "cloud", "start", "rented", "--config", str(path)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    (machine,) = wait_until(lambda: machines(cloud), "the machine", 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert f"(id {machine['id']}) has ended" in log.read_text()
    wait_until(lambda: not lives(machine["pid"]), "the machine to end")
    assert machines(cloud) == [] and load(path).workers == []
