"""Whatever is cancelled, and however: within a second it is gone from every device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.queue_bed.bed import (
    PACK,
    Gates,
    assert_in_time,
    queued,
    save,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master, wait_until
from tests.upscale_bed.bed import PACK as UPSCALE_PACK
from tests.upscale_bed.bed import demo

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with two workers, which are there."""
    base = tmp_path_factory.mktemp("cancel")
    packs = {"queue_bed": PACK, "upscale_bed": UPSCALE_PACK}
    with closing(Master(comfyui, base, workers="cpu,cpu", packs=packs)) as running:
        share(running)
        unshare(running)
        yield running


def all_idle(server: Master) -> bool:
    """A worker is idle when its own ComfyUI has said that nothing is left of the prompt."""
    return set(server.states().values()) == {"idle"}


def seconds_until_gone(server: Master, prompt_id: str, path: str, body: dict[str, Any]) -> float:
    """Cancel so; the prompt ends as an interrupted one, and no worker has any of it in hand."""
    began = time.monotonic()
    server.post(path, body)
    wait_until(lambda: all_idle(server), "the workers to be idle")
    entry = server.finish(prompt_id)
    took = time.monotonic() - began
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert not entry["status"]["completed"] and queued(server) == ([], [])
    return took


NAMES = ("a", "b", "c")


def held_shares(gates: Gates, **collector: Any) -> dict[str, Any]:
    """A collector whose shares stand at gates a, b and c."""
    prompt = gates.prompt("a")
    for name in NAMES:
        gates.prompt(name)
    lines = {"values": "\n".join(NAMES), "type": "STRING"}
    collect = {"images": ["2", 0], "shares": len(NAMES), "delegate": False, **collector}
    prompt["2"]["inputs"]["name"] = ["name", 0]
    prompt["name"] = {"class_type": "FleetValue", "inputs": lines}
    prompt["all"] = {"class_type": "FleetCollector", "inputs": collect}
    return prompt | {"3": save(["all", 0], "cancelled")}


def held_branches(gates: Gates) -> dict[str, Any]:
    """Two branches that stand at gates on workers, and a third one on the master."""
    prompt: dict[str, Any] = {}
    for name in NAMES:
        held = gates.prompt(name, ord(name))
        held["2"]["inputs"]["image"] = [f"1{name}", 0]
        prompt |= {f"1{name}": held["1"], f"2{name}": held["2"], f"3{name}": save([f"2{name}", 0])}
        if name != NAMES[0]:
            branch = {"value": [f"2{name}", 0]}
            prompt[f"4{name}"] = {"class_type": "FleetBranch", "inputs": branch}
            prompt[f"3{name}"] = save([f"4{name}", 0])
    return prompt


@pytest.mark.parametrize("by", ["everything", "its id"])
@pytest.mark.parametrize("kind", ["shares", "branches"])
def test_what_a_prompt_does_on_three_devices_is_cancelled(
    server: Master, gates: Gates, kind: str, by: str
) -> None:
    unshare(server)
    prompt = held_shares(gates) if kind == "shares" else held_branches(gates)

    def cancel() -> float:
        gates.begin_anew()
        prompt_id = server.queue(prompt)
        assert sorted(gates.wait(*NAMES)) == ["cpu-0", "cpu-1", "master"]
        body = {"prompt_id": prompt_id} if by == "its id" else {}
        took = seconds_until_gone(server, prompt_id, "/interrupt", body)
        assert len(gates.left(*NAMES)) == len(NAMES)
        return took

    assert_in_time(cancel)


def test_shares_of_a_master_that_only_waits_are_cancelled(server: Master, gates: Gates) -> None:
    prompt = held_shares(gates, shares=2, delegate=True)

    def cancel() -> float:
        gates.begin_anew()
        prompt_id = server.queue(prompt)
        assert sorted(gates.wait("a", "b")) == ["cpu-0", "cpu-1"]
        took = seconds_until_gone(server, prompt_id, "/interrupt", {})
        assert len(gates.left("a", "b")) == 2 and not gates.reached("c")
        return took

    assert_in_time(cancel)


@pytest.mark.parametrize("by", ["everything", "its id", "its run's id"])
def test_a_prompt_of_the_shared_queue_is_cancelled(server: Master, gates: Gates, by: str) -> None:
    share(server)
    prompt = gates.prompt("a")

    def cancel() -> float:
        gates.begin_anew()
        prompt_id = server.queue(prompt)
        gates.wait("a")
        wait_to_run(server, prompt_id)
        runs: list[Mapping[str, Any]] = server.get("/comfyfleet/v1/status")["runs"]
        (run_id,) = [run["id"] for run in runs if run["prompt_id"] == prompt_id]
        path, body = {
            "everything": ("/interrupt", {}),
            "its id": ("/interrupt", {"prompt_id": prompt_id}),
            "its run's id": (f"/comfyfleet/v1/runs/{run_id}/cancel", {}),
        }[by]
        took = seconds_until_gone(server, prompt_id, path, body)
        assert gates.left("a")
        return took

    assert_in_time(cancel)


def test_a_prompt_that_is_deleted_before_its_turn_never_reaches_a_worker(
    server: Master, gates: Gates
) -> None:
    share(server)
    held = [server.queue(gates.prompt(name)) for name in ("a", "b")]
    gates.wait("a", "b")
    wait_to_run(server, *held)
    deleted = server.queue(gates.prompt("c"))
    server.post("/queue", {"delete": [deleted]})
    assert queued(server)[1] == [], "by the time that it is answered"
    gates.open("a", "b")
    for prompt_id in held:
        assert server.finish(prompt_id)["status"]["status_str"] == "success"
    wait_until(lambda: all_idle(server), "the workers to be idle")
    assert not gates.reached("c") and deleted not in server.get("/history")


def test_a_running_prompt_is_not_deleted(server: Master, gates: Gates) -> None:
    """As in one ComfyUI: what runs is interrupted, and only what waits can be deleted."""
    share(server)
    prompt_id = server.queue(gates.prompt("a"))
    gates.wait("a")
    wait_to_run(server, prompt_id)
    server.post("/queue", {"delete": [prompt_id]})
    assert queued(server) == ([prompt_id], [])
    gates.open("a")
    assert server.finish(prompt_id)["status"]["status_str"] == "success"


@pytest.mark.parametrize("blend", ["independent", "progressive"])
def test_tiles_in_the_middle_of_sampling_are_cancelled(
    server: Master, tmp_path: Path, blend: str
) -> None:
    """Each has so many steps that none ends meanwhile."""
    unshare(server)
    prompt = demo(steps=5000, width=160, height=160, mode_type="Chess", blend=blend)
    prompt["3"]["inputs"]["folder"] = str(tmp_path)
    prompt["end"] = save(["6", 0], "cancelled")
    samplings = tmp_path / "samplings"

    def cancel() -> float:
        samplings.unlink(missing_ok=True)
        prompt_id = server.queue(prompt)
        wait_until(lambda: samplings.exists() and len(samplings.read_text().split()) == 3, "tiles")
        assert sorted(samplings.read_text().split()) == ["cpu-0", "cpu-1", "master"]
        took = seconds_until_gone(server, prompt_id, "/interrupt", {"prompt_id": prompt_id})
        assert len(samplings.read_text().split()) == 3
        return took

    assert_in_time(cancel)
