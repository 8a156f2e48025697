"""What ComfyUI-Distributed was seen to fail at, where no other test here is about it.

Elsewhere: lost replies and dead workers (test_chaos, test_faults, test_upscale), pictures of
different size or channels (test_collector), cancel while collecting (test_cancel), many prompts on
few devices (test_queue), addresses that never answer (test_hostile_command), tunnels (test_tunnel),
many who write the configuration (config/test_editing).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.queue_bed.bed import (
    PACK,
    Gates,
    fault,
    picture,
    queued,
    save,
    saved,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master, error_of, wait_until, worker_pids
from tests.upscale_bed.bed import PACK as UPSCALE_PACK
from tests.upscale_bed.bed import demo

pytestmark = pytest.mark.cluster

PACKS = {"queue_bed": PACK, "upscale_bed": UPSCALE_PACK}


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with two workers whose queue is not shared."""
    base = tmp_path_factory.mktemp("peer")
    running = Master(comfyui, base, workers="cpu,cpu", packs=PACKS)
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
    assert server.finish(queued_id)["status"]["status_str"] == "error"

    def idle() -> bool:
        workers = server.get("/comfyfleet/v1/status")["workers"]
        return all(worker["state"] == "idle" for worker in workers)

    wait_until(idle, "the workers to be idle")
    assert queued(server) == ([], [])


def test_nodes_behind_a_delegating_collector_keep_their_linked_inputs(server: Master) -> None:
    """The peer's lose them: the VAE of an encoder, the linked prefix of a file's name."""
    prompt = collected({}, "1", 3, delegate=True)
    prompt |= {
        "model": {"class_type": "FleetDemoModel", "inputs": {}},
        "text": {"class_type": "PrimitiveString", "inputs": {"value": "linked"}},
        "in": {"class_type": "VAEEncode", "inputs": {"pixels": ["all", 0], "vae": ["model", 2]}},
        "out": {"class_type": "VAEDecode", "inputs": {"samples": ["in", 0], "vae": ["model", 2]}},
        "saved": save(["out", 0]),
    }
    prompt["saved"]["inputs"]["filename_prefix"] = ["text", 0]
    delegated = server.files(server.run(prompt), "saved")
    prompt["all"]["inputs"]["delegate"] = False
    prompt["out"]["inputs"]["vae"] = ["other", 2]  # so that nothing of it comes from the cache
    prompt["other"] = {"class_type": "FleetDemoModel", "inputs": {}}
    mixed = server.files(server.run(prompt), "saved")
    assert len(delegated) == 3 and all(path.name.startswith("linked_") for path in delegated)
    assert [Image.open(path).tobytes() for path in delegated] == [
        Image.open(path).tobytes() for path in mixed
    ]


def test_a_value_is_that_of_its_share_whoever_is_there(server: Master) -> None:
    """The peer's second worker gets the value of the first, if that one is not there."""
    lines = {"class_type": "FleetValue", "inputs": {"values": "7\n8\n9", "type": "INT"}}
    numbers = {"default_value": "7", "worker_values": '{"1": "8", "2": "9", "_type": "INT"}'}
    old = {"class_type": "DistributedValue", "inputs": numbers}
    act(server, "cpu-0", "disable")
    try:
        for value, delegate in ((lines, True), (lines, False), (old, True), (old, False)):
            prompt = collected({}, "1", 3, delegate=delegate) | {"value": value}
            prompt["1"]["inputs"]["color"] = ["value", 0]
            assert colors(server, server.run(prompt)) == [7, 8, 9]
    finally:
        act(server, "cpu-0", "enable")


def test_pictures_travel_as_they_are(server: Master, tmp_path: Path) -> None:
    """The peer's become 8 bit, where 1.01 is black, and -0.01 white."""
    prompt = collected({}, "1", 3, delegate=True)
    prompt["1"] = {"class_type": "TestExtremes", "inputs": {"shift": ["seed", 0]}}
    dump = {"value": ["all", 0], "path": str(tmp_path / "dumped.npy")}
    prompt["saved"] = {"class_type": "TestDump", "inputs": dump}
    server.run(prompt)
    one = np.broadcast_to(np.array([1.01, -0.01, 1 / 3], np.float32), (1, 8, 8, 3))
    wanted = np.concatenate([one + np.float32(shift) for shift in (1, 2, 3)])
    assert np.array_equal(np.load(tmp_path / "dumped.npy"), wanted)


def test_collectors_of_one_prompt_have_modes_of_their_own(server: Master, gates: Gates) -> None:
    """With the peer one that is balanced makes all of them so."""
    prompt = collected({}, "1", 3, delegate=True)
    gates.open("mixed", "once")
    for name, collector in {
        "mixed": {"class_type": "FleetCollector", "inputs": {"shares": 2, "delegate": False}},
        "once": {"class_type": "DistributedCollector", "inputs": {"load_balance": True}},
        "each": {"class_type": "DistributedCollector", "inputs": {"load_balance": False}},
    }.items():
        collector["inputs"]["images"] = ["1", 0]
        prompt |= {name: collector, f"saved-{name}": save([name, 0], "modes")}
    entry = server.run(prompt)
    assert colors(server, entry) == [1, 2, 3]
    counts = {name: len(server.files(entry, f"saved-{name}")) for name in ("mixed", "once", "each")}
    assert counts == {"mixed": 2, "once": 1, "each": 3}


def act(server: Master, worker: str, action: str) -> None:
    server.post(f"/comfyfleet/v1/workers/{worker}/{action}", {})


def alive(server: Master, worker: str) -> Counter[str]:
    """How many objects of ours there are, by class: on a worker, or on the master."""
    look = {"class_type": "TestAlive", "inputs": {"look": next(_numbers)}}
    if worker == "master":
        unshare(server)
    else:
        share(server)
        act(server, "all", "disable")
        act(server, worker, "enable")
    (text,) = server.run({"1": look})["outputs"]["1"]["text"]
    unshare(server)
    act(server, "all", "enable")
    return Counter(json.loads(text))


#: More than the three shares of a result, so that what grows by each prompt is told from one that
#: is on its way.
_ROUNDS = 4
#: What the status tells of the last runs, of which the oldest are forgotten.
_KEPT_FOR_A_WHILE = {"RunRecord", "AttemptRecord"}
#: How slow each of two workers is, and how fast it and the fleet are without a model and with the
#: demo's. When one of them becomes known is chance: whoever is free gets the first tile.
_MOST_ESTIMATES = 2 + 3 * 2
#: Whatever is counted with one of these is not in any cache.
_numbers = itertools.count(1000)


def end_in_every_way(server: Master, folder: Path) -> None:
    """Collectors, an upscale, and prompts of a shared queue: done, failed, cancelled, alone."""
    seed, gates = next(_numbers), Gates(folder)

    def shares(faulty: str = "none", **inputs: Any) -> dict[str, Any]:
        broken = {"image": ["1", 0], "on": faulty, "kind": "error"}
        prompt = collected({"2": {"class_type": "TestFault", "inputs": broken}}, "2", 3, **inputs)
        prompt["seed"]["inputs"]["seed"] = seed
        return prompt

    def ends(prompt: dict[str, Any], how: str) -> None:
        assert server.finish(server.queue(prompt))["status"]["status_str"] == how

    ends(shares(), "success")
    ends(shares(delegate=True), "success")
    ends(shares("all", delegate=True), "error")
    ends(shares(""), "error")  # the master's own share only
    old = {"images": ["2", 0], "load_balance": True}
    ends(shares() | {"all": {"class_type": "DistributedCollector", "inputs": old}}, "success")
    upscale = demo(seed=seed, width=64, height=64)
    upscale["3"]["inputs"]["folder"] = str(folder)
    ends(upscale | {"end": save(["6", 0])}, "success")
    act(server, "all", "disable")
    ends(shares(), "success")  # the master alone
    act(server, "all", "enable")
    held = gates.prompt(f"held{seed}")
    cancel(server, gates, collected({"2": held["2"]}, "2", 3), f"held{seed}")
    share(server)
    ends(saved(seed), "success")
    ends(fault("all", color=seed), "error")
    cancel(server, gates, gates.prompt(f"shared{seed}", seed), f"shared{seed}")
    unshare(server)


def cancel(server: Master, gates: Gates, prompt: dict[str, Any], name: str) -> None:
    prompt_id = server.queue(prompt)
    gates.wait(name)
    wait_to_run(server, prompt_id)
    server.post("/interrupt", {"prompt_id": prompt_id})
    assert server.finish(prompt_id)["status"]["status_str"] == "error"


def test_nothing_is_kept_of_what_has_ended(server: Master, tmp_path: Path) -> None:
    """The peer keeps a queue, with all that arrives in it, of much of this."""
    end_in_every_way(server, tmp_path / "gates")
    before = {who: alive(server, who) for who in ("master", "cpu-0", "cpu-1")}
    for _ in range(_ROUNDS):
        end_in_every_way(server, tmp_path / "gates")

    def grown(who: str) -> set[str]:
        now = alive(server, who)
        more = {name for name, number in (now - before[who]).items() if number >= _ROUNDS}
        if now["Estimate"] <= _MOST_ESTIMATES:
            more.discard("Estimate")
        return more - _KEPT_FOR_A_WHILE

    for who in before:
        deadline = time.monotonic() + 60
        while (left := grown(who)) and time.monotonic() < deadline:
            pass  # what is on its way, of this look too, arrives soon
        assert not left, f"{who} holds {left}"
