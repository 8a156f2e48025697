"""Workers and masters that are killed in the middle of their work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from comfyfleet.config import demo_dir
from tests import prompts
from tests.support import COMFYFLEET, Master, fleets, run_command, wait_until, worker_pids

# Long units, before the first test all of them on one worker.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WORKFLOW = str(demo_dir() / "workflow.json")
#: Units long enough to be hit in the middle: some seconds each on one core.
LONG = ("--set", "5.steps=80", "--seed", "1", "--count", "6")


@contextmanager
def running(out: Path, *options: str, workers: str = "cpu,cpu") -> Iterator[subprocess.Popen[str]]:
    """A ``comfyfleet run`` of the demo workflow, in the background."""
    command = [str(COMFYFLEET), "run", WORKFLOW, "--workers", workers, "--out", str(out)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def saved(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def noted(out: Path) -> int:
    """How many units the manifest names, which is written behind their files."""
    manifest = out / "manifest.json"
    return len(json.loads(manifest.read_text())["units"]) if manifest.exists() else 0


def busy(pid: int) -> bool:
    """A worker that computes: it has used most of the last moment's processor time."""
    try:
        return psutil.Process(pid).cpu_percent(0.2) > 50
    except psutil.NoSuchProcess:
        return False


def victim_of(owner_pid: int) -> dict[str, Any]:
    """The first of its workers."""
    records = wait_until(lambda: fleets(owner_pid), "the fleet's record")
    return dict(records[0]["workers"][0])


def begun(worker: dict[str, Any]) -> int:
    """How often it has begun to sample one of the long units: its log shows the steps."""
    return Path(worker["log_file"]).read_text(errors="replace").count("| 0/80 [")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nothing_left: None) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    answer = run_command("run", WORKFLOW, "--workers", "cpu", "--out", str(out), *LONG)
    assert answer.returncode == 0, answer.stderr
    return saved(out)


def test_a_run_survives_the_death_of_a_worker(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    with running(tmp_path / "out", *LONG) as process:
        victim = victim_of(process.pid)
        wait_until(lambda: begun(victim), "the worker to compute")
        os.kill(victim["pid"], signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert saved(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_run_survives_the_death_of_all_its_workers(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    with running(tmp_path / "out", *LONG) as process:
        for pid in worker_pids(process.pid):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert saved(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_a_clear_failure(
    tmp_path: Path, nothing_left: None
) -> None:
    """Whoever takes it is killed, again and again."""
    with running(tmp_path / "out", "--count", "1", "--set", "5.steps=2000") as process:
        killed: set[int] = set()
        while process.poll() is None:
            workers = [each for fleet in fleets(process.pid) for each in fleet["workers"]]
            for pid in {worker["pid"] for worker in workers} - killed:
                if busy(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "seems to kill workers" in output


def test_no_worker_outlives_a_killed_owner(tmp_path: Path, nothing_left: None) -> None:
    with running(tmp_path / "out", *LONG) as process:
        pids = worker_pids(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the workers to end")
        print(f"workers gone {time.monotonic() - killed:.2f} s after their owner was killed")


def test_interrupting_the_command_stops_all_workers(tmp_path: Path, nothing_left: None) -> None:
    with running(tmp_path / "out", *LONG) as process:
        pids = worker_pids(process.pid)
        process.send_signal(signal.SIGINT)
        stopped = time.monotonic()
        wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the workers to end")
        print(f"workers gone {time.monotonic() - stopped:.2f} s after Ctrl-C")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output


def test_resume_runs_only_what_is_missing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The one worker needs long for the rest: who looks has time to interrupt it."""
    out = tmp_path / "out"
    with running(out, *LONG, workers="cpu") as process:
        wait_until(lambda: noted(out) >= 2, "two results")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    done = noted(out)
    assert 2 <= done < 6
    answer = run_command(
        "run", WORKFLOW, "--workers", "cpu,cpu", "--out", str(out), "--resume", *LONG
    )
    assert answer.returncode == 0, answer.stderr
    assert f"{6 - done} runs saved" in answer.stdout
    assert saved(out) == undisturbed


def test_a_master_goes_on_when_its_worker_is_killed(master: Master) -> None:
    calm = master.run(prompts.collected(shares=6, seed=300, steps=80))
    victim = victim_of(master.process.pid)
    before = begun(victim)
    prompt_id = master.queue(prompts.collected(shares=6, seed=300, steps=80) | _fresh())
    wait_until(lambda: begun(victim) > before, "the worker to compute")
    os.kill(victim["pid"], signal.SIGKILL)
    entry = master.finish(prompt_id)
    assert entry["status"]["status_str"] == "success"
    pixels = [path.read_bytes()[-5000:] for path in master.files(entry, "7")]
    assert len(pixels) == 6
    assert pixels == [path.read_bytes()[-5000:] for path in master.files(calm, "7")]


def _fresh() -> dict:
    """A node that changes nothing but keeps ComfyUI's cache from answering at once."""
    text = {"text": "a large red star, center, on white ", "clip": ["1", 1]}
    return {"2": {"class_type": "CLIPTextEncode", "inputs": text}}


def test_no_worker_outlives_a_killed_master(
    comfyui: Path, tmp_path: Path, nothing_left: None
) -> None:
    own = Master(comfyui, tmp_path / "master", workers="cpu")
    own.run(prompts.collected(shares=2))
    pids = worker_pids(own.process.pid)
    os.kill(own.process.pid, signal.SIGKILL)
    own.process.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the workers to end")
