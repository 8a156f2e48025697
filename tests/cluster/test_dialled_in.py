"""A worker that nobody can reach dials in and is used through its line."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.queue_bed.bed import PACK, Gates, saved
from tests.support import COMFYFLEET, Master, run_command, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def studio(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """The ComfyUI that shall use the other one; it has no worker of its own."""
    folder = tmp_path_factory.mktemp("studio")
    running = Master(comfyui, folder, workers="0", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture(scope="module")
def garage(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """The ComfyUI behind NAT."""
    folder = tmp_path_factory.mktemp("garage")
    running = Master(comfyui, folder, workers="0", packs={"queue_bed": PACK})
    yield running
    running.close()


def join(studio: Master, garage: Master, *, token: str = "", name: str = "garage") -> list[str]:
    return [
        "join", studio.url, "--token", token or studio.token, "--name", name, "--url", garage.url,
    ]  # fmt: skip


@contextmanager
def joined(studio: Master, garage: Master, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(COMFYFLEET), *join(studio, garage)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: "joined http" in log.read_text(), f"the line: {log}", 60)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130, log.read_text()


def workers(studio: Master) -> dict[str, str]:
    return {each["id"]: each["state"] for each in studio.get("/comfyfleet/v1/status")["workers"]}


def share(studio: Master) -> None:
    body = {"on": True, "master_computes": False}
    assert studio.post("/comfyfleet/v1/share", body)["on"]


def test_its_prompts_run_there_and_survive_a_line_that_breaks(
    studio: Master, garage: Master, tmp_path: Path
) -> None:
    gates = Gates(tmp_path / "gates")
    with joined(studio, garage, tmp_path / "join.log"):
        share(studio)
        wait_until(lambda: workers(studio).get("garage") == "idle", "the worker", 60)
        entry = studio.run(saved(5, "joined"))
        (file,) = studio.files(entry, "3")
        assert file.read_bytes().startswith(b"\x89PNG")
        held = studio.queue(gates.prompt("held"))
        gates.wait("held")
        assert workers(studio)["garage"] == "busy"
    with joined(studio, garage, tmp_path / "again.log"):
        gates.open("held")
        entry = studio.finish(held)
        assert entry["status"]["status_str"] == "success"
        assert garage.get("/history")  # it ran there
        taken = run_command(*join(studio, garage))
        assert taken.returncode == 2 and "is there; choose another --name" in taken.stderr
    assert studio.post("/comfyfleet/v1/share", {"on": False})["on"] is False


def test_a_wrong_token_is_refused_with_the_remedy(studio: Master, garage: Master) -> None:
    answer = run_command(*join(studio, garage, token="wrong", name="other"))
    assert answer.returncode == 2
    assert "this token is not valid" in answer.stderr and "comfyfleet pair" in answer.stderr


def test_nothing_there_to_join(garage: Master, studio: Master) -> None:
    answer = run_command("join", "ftp://studio:8188")
    assert answer.returncode == 2 and "give an address such as" in answer.stderr
