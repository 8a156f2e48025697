"""A fleet whose workers were all given up is followed by another one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from comfyfleet.config import load
from comfyfleet.fleet import Fleet, Host, Service
from tests import prompts
from tests.queue_bed.bed import PACK, Gates, saved, share
from tests.support import Master, fleets, wait_until

pytestmark = pytest.mark.cluster


def test_a_service_tells_of_each_fleet_that_it_starts(
    comfyui: Path, tmp_path: Path, nothing_left: None
) -> None:
    config = load(tmp_path / "fleet.yaml", {"COMFYFLEET_WORKERS": "cpu"})
    service = Service(Host(comfyui=comfyui, cwd=Path.cwd()), lambda: "cpu", lambda: config)
    started: list[Fleet] = []
    service.on_started = started.append
    first = service.fleet()
    assert service.fleet() is first and started == [first]
    first.close()
    second = service.fleet()
    assert started == [first, second] and [each.id for each in second.workers] == ["cpu-0"]
    second.close()


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    base = tmp_path_factory.mktemp("given-up")
    running = Master(comfyui, base, workers="cpu", packs={"queue_bed": PACK})
    yield running
    if running.process.poll() is None:
        running.close()


@pytest.mark.slow  # a worker is given up after minutes
@pytest.mark.timeout(600)
def test_the_shared_queue_goes_on_with_the_next_fleet(server: Master, gates: Gates) -> None:
    share(server, master_computes=True)
    server.run(saved(1))

    def kill() -> bool:
        """True once the only worker was given up."""
        for record in fleets(server.process.pid):
            for worker in record["workers"]:
                with suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)
        return bool(server.get("/comfyfleet/v1/status")["fleet"] == "ended")

    wait_until(kill, "the worker to be given up", 400)
    gates.open("alone")
    server.run(gates.prompt("alone", 2))
    assert gates.who("alone") == "master"

    server.run(prompts.collected(shares=2, seed=9))  # for which a fleet is started
    wait_until(lambda: server.states().get("cpu-0") == "idle", "the new worker")
    ids = [server.queue(gates.prompt(name, 3 + i)) for i, name in enumerate(("a", "b"))]
    assert sorted(gates.wait("a", "b")) == ["cpu-0", "master"]
    gates.open("a", "b")
    for prompt_id in ids:
        assert server.finish(prompt_id)["status"]["status_str"] == "success"

    # Its end is that of the next fleet too: what they run then is kept for the next master.
    held = {server.queue(gates.prompt(name, 9 + i)) for i, name in enumerate(("c", "d"))}
    assert sorted(gates.wait("c", "d")) == ["cpu-0", "master"]
    server.process.send_signal(signal.SIGINT)
    server.process.wait(60)
    with closing(sqlite3.connect(server.folder / "queue.sqlite3")) as db:
        kept = db.execute("SELECT prompt_id FROM prompts").fetchall()
    assert {json.loads(prompt_id) for (prompt_id,) in kept} == held
