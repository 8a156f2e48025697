"""What ComfyUI-Distributed was seen to fail at, where no other test here is about it.

Elsewhere: lost replies and dead workers (test_chaos, test_faults), pictures of different size or
channels, outputs behind a delegating collector, cancel while collecting and values by share
(test_collector), many prompts on few devices (test_queue).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.queue_bed.bed import PACK, Gates, picture, queued, save
from tests.support import Master, error_of, wait_until, worker_pids

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with two workers whose queue is not shared."""
    base = tmp_path_factory.mktemp("peer")
    running = Master(comfyui, base, workers="cpu,cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


def collected(upstream: dict[str, Any], last: str, shares: int, **inputs: Any) -> dict[str, Any]:
    """Pictures of colours that follow one another, collected and saved."""
    seed = {"seed": {"class_type": "FleetSeed", "inputs": {"seed": 1}}}
    collect = {"images": [last, 0], "shares": shares, "delegate": False, **inputs}
    prompt = picture(0) | upstream | seed
    prompt["1"]["inputs"]["color"] = ["seed", 0]
    prompt["all"] = {"class_type": "FleetCollector", "inputs": collect}
    prompt["saved"] = save(["all", 0], "peer")
    return prompt


def colors(server: Master, entry: dict[str, Any]) -> list[int]:
    found = []
    for path in server.files(entry, "saved"):
        with Image.open(path) as image:
            found.append(image.getpixel((0, 0))[2])
    return found


def test_a_node_that_workers_lack_is_computed_by_the_master(server: Master, gates: Gates) -> None:
    """The peer fails the whole request, after the other workers were set to work."""
    prompt = gates.prompt("own", cls="TestOnlyHere")
    gates.open("own")
    entry = server.run(collected({"2": prompt["2"]}, "2", 4))
    assert colors(server, entry) == [1, 2, 3, 4]
    assert gates.who("own") == "master"


def test_with_delegate_it_is_an_error_that_names_the_node(server: Master, gates: Gates) -> None:
    prompt = gates.prompt("own", cls="TestOnlyHere")
    queued_id = server.queue(collected({"2": prompt["2"]}, "2", 4, delegate=True))
    assert "TestOnlyHere" in error_of(server.finish(queued_id))


def test_a_delegating_collector_gets_all_though_a_worker_dies(server: Master, gates: Gates) -> None:
    """The peer gives an empty batch as success."""
    prompt = gates.prompt("held")
    queued_id = server.queue(collected({"2": prompt["2"]}, "2", 4, delegate=True))
    gates.wait("held")
    os.kill(worker_pids(server.process.pid)[0], signal.SIGKILL)
    gates.open("held")
    entry = server.finish(queued_id)
    assert entry["status"]["status_str"] == "success", error_of(entry)
    assert colors(server, entry) == [1, 2, 3, 4]


def test_a_prompt_that_ends_takes_its_units_with_it(server: Master, gates: Gates) -> None:
    """The peer's workers go on, and their results pile up in the master's memory."""
    prompt = gates.prompt("stuck")
    queued_id = server.queue(collected({"2": prompt["2"]}, "2", 6))
    gates.wait("stuck")
    server.post("/interrupt", {})
    assert server.finish(queued_id, 10)["status"]["status_str"] == "error"

    def idle() -> bool:
        workers = server.get("/comfyfleet/v1/status")["workers"]
        return all(worker["state"] == "idle" for worker in workers)

    wait_until(idle, "the workers to be idle", 30)
    assert queued(server) == ([], [])
