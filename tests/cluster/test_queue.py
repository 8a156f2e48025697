"""The shared queue through /prompt of a real ComfyUI: as one ComfyUI, only on more devices."""

from __future__ import annotations

import re
import time
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import prompts
from tests.parallel_bed.events import Event, Recording, record
from tests.queue_bed.bed import (
    PACK,
    Gates,
    assert_in_time,
    fault,
    hold,
    picture,
    queued,
    save,
    saved,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master, error_of, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with two workers."""
    base = tmp_path_factory.mktemp("queue")
    running = Master(comfyui, base, workers="cpu,cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture
def shared(server: Master) -> Iterator[Master]:
    """Only the workers run prompts."""
    share(server)
    yield server
    wait_until(lambda: not any(queued(server)), "the queue to be empty", 60)


# The same as with one ComfyUI.

KINDS: dict[str, dict[str, Any]] = {
    "image": {"3": save(["1", 0], "kinds/%year%/image")},
    "images": {"2": {"class_type": "ImageScaleBy", "inputs": {
        "image": ["1", 0], "upscale_method": "bicubic", "scale_by": 2.0}},
        "3": save(["2", 0], "kinds/twice"), "4": save(["1", 0], "kinds/twice")},
    "preview": {"3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}},
    "audio": {"2": {"class_type": "TestTone", "inputs": {"pitch": 440.0}}, "3": {
        "class_type": "SaveAudio",
        "inputs": {"audio": ["2", 0], "filename_prefix": "kinds/sound"}}},
    "video": {"2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}}, "3": {
        "class_type": "SaveVideo", "inputs": {
            "video": ["2", 0], "filename_prefix": "kinds/film", "format": "auto",
            "codec": "auto"}}},
    "text": {"3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}},
    "latent": {"2": {"class_type": "EmptyLatentImage", "inputs": {
        "width": 64, "height": 64, "batch_size": 1}}, "3": {"class_type": "SaveLatent", "inputs": {
            "samples": ["2", 0], "filename_prefix": "kinds/latent"}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output_is_that_of_one_comfyui(server: Master, kind: str) -> None:
    prompt = picture(color=len(kind) * 1000) | KINDS[kind]
    unshare(server)
    alone = record(server, prompt)
    share(server)
    elsewhere = record(server, prompt)
    assert_same(server, alone, elsewhere)


def test_previews_are_those_of_one_comfyui(server: Master) -> None:
    node = {"class_type": "TestPreviews", "inputs": {"image": ["1", 0], "steps": 3}}
    prompt = picture(color=4321) | {"2": node, "3": save(["2", 0])}
    unshare(server)
    alone = shown(record(server, prompt))
    share(server)
    elsewhere = shown(record(server, prompt))
    # The first one is always shown; newer ComfyUI leave out what comes too soon after it.
    assert alone[0] == elsewhere[0] and alone[0][0] == "2"
    assert set(elsewhere) <= set(alone) or set(alone) <= set(elsewhere)


def shown(recording: Recording) -> list[tuple[str | None, str]]:
    return [(each.node, each.digest) for each in recording.events if each.kind == "preview"]


def test_a_sampler_shows_the_same_steps(server: Master) -> None:
    prompt = prompts.demo(seed=3)
    unshare(server)
    alone = record(server, prompt)
    share(server)
    elsewhere = record(server, prompt)
    for shown in (alone, elsewhere):
        assert shown.count("progress") > 1
    assert_same(server, alone, elsewhere)
    again = record(server, prompt)
    assert again.count("execution_cached") == len(prompt)
    assert files_of(server, again) == files_of(server, elsewhere)


def test_an_error_is_that_of_one_comfyui(server: Master) -> None:
    unshare(server)
    alone = record(server, fault("all,,", color=77))
    share(server)
    good = [server.queue(saved(color)) for color in (1, 2)]
    elsewhere = record(server, fault("all", color=78))
    good += [server.queue(saved(color)) for color in (3, 4)]
    assert {event.kind for event in elsewhere.events} == {event.kind for event in alone.events}
    first, second = (entry.entry["status"]["messages"][-1] for entry in (alone, elsewhere))
    same = ("node_id", "node_type", "exception_message", "exception_type")
    assert first[0] == second[0] == "execution_error"
    assert {key: first[1][key] for key in same} == {key: second[1][key] for key in same}
    assert [server.finish(prompt)["status"]["status_str"] for prompt in good] == ["success"] * 4


def assert_same(server: Master, alone: Recording, elsewhere: Recording) -> None:
    """Events in the same order, a history of the same form, and the same bytes in the files."""
    # Newer ComfyUI tells of progress and shows previews no more often than it has time.
    often = ("execution_cached", "progress", "preview")
    ours, theirs = (
        [event for event in each.events if event.kind not in often] for each in (alone, elsewhere)
    )
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    assert [event.kind for event in theirs][-2:] == [event.kind for event in ours][-2:]
    first, second = (
        [e for e in each.events if e.kind == "progress"][-1:] for each in (alone, elsewhere)
    )
    assert first == second
    assert bool(alone.count("preview")) == bool(elsewhere.count("preview"))
    assert form(alone.entry) == form(elsewhere.entry)
    first, second = (files_of(server, each) for each in (alone, elsewhere))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not set(first) & set(second)


def form(value: Any) -> Any:
    """A history entry without what differs from run to run: times, ids, numbers of files."""
    if isinstance(value, dict):
        skipped = ("timestamp", "prompt_id", "client_id", "create_time", "prompt")
        return {key: form(entry) for key, entry in value.items() if key not in skipped}
    if isinstance(value, list):
        cached = value[:1] == ["execution_cached"]
        return value[:1] if cached else [form(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"_[a-z]{5}_\d{5}_|_\d{5}(?=\D)", "_N_", value)
    return value


def files_of(server: Master, recording: Recording) -> list[Path]:
    """Where the master has the files that the history names, in order of nodes."""
    outputs = recording.entry["outputs"]
    found = []
    for node_id in sorted(outputs):
        for entries in outputs[node_id].values():
            for entry in entries:
                if isinstance(entry, dict) and "filename" in entry:
                    folder = server.base / entry["type"] / entry["subfolder"]
                    found.append(folder / entry["filename"])
    return found


def test_pictures_can_be_viewed(shared: Master) -> None:
    import urllib.request

    entry = shared.run(picture(0xFF8000) | KINDS["preview"])
    (shown,) = entry["outputs"]["3"]["images"]
    query = f"filename={shown['filename']}&subfolder={shown['subfolder']}&type={shown['type']}"
    with urllib.request.urlopen(f"http://127.0.0.1:{shared.port}/view?{query}") as answer:
        assert Image.open(answer).getpixel((0, 0)) == (255, 128, 0)


# Who runs what.


def test_all_devices_work_at_once(server: Master, gates: Gates) -> None:
    share(server, master_computes=True)
    names = ["a", "b", "c", "d"]
    ids = [server.queue(gates.prompt(name, 10 + i)) for i, name in enumerate(names)]
    # Which three: a slower worker leaves the next prompt to one that it knows to be faster.
    wait_until(lambda: sum(map(gates.reached, names)) == 3, "three of them to be held", 60)
    reached = {prompt_id: gates.who(name) for prompt_id, name in zip(ids, names, strict=True)}
    assert sorted(reached.values()) == ["", "cpu-0", "cpu-1", "master"]
    wait_to_run(server, *(prompt_id for prompt_id, who in reached.items() if who))
    running, waiting = queued(server)
    assert {each: bool(who) for each, who in reached.items()} == {
        **dict.fromkeys(running, True),
        **dict.fromkeys(waiting, False),
    }
    gates.open(*names)
    assert [server.finish(each)["status"]["status_str"] for each in ids] == ["success"] * 4


def test_a_master_that_computes_nothing_runs_nothing(shared: Master, gates: Gates) -> None:
    names = [f"n{i}" for i in range(6)]
    gates.open(*names)
    for prompt_id in [shared.queue(gates.prompt(name, 50)) for name in names]:
        shared.finish(prompt_id)
    assert "master" not in {gates.who(name) for name in names}


def test_what_only_the_master_has_runs_there(shared: Master, gates: Gates) -> None:
    held = [shared.queue(gates.prompt(name, i)) for i, name in enumerate(["x", "y"])]
    gates.wait("x", "y")
    mine = shared.queue(gates.prompt("mine", 9, cls="TestOnlyHere"))
    assert gates.wait("mine") == ["master"]
    gates.open("x", "y", "mine")
    for prompt_id in [*held, mine]:
        assert shared.finish(prompt_id)["status"]["status_str"] == "success"


def test_a_collector_uses_the_whole_fleet_and_stays_with_the_master(shared: Master) -> None:
    entry = shared.run(prompts.collected(shares=4, seed=5))
    assert len(entry["outputs"]["7"]["images"]) == 4


def test_what_a_node_saves_on_the_way_to_a_collector_comes_home(shared: Master) -> None:
    prompt = prompts.collected(shares=4, seed=9)
    collector = next(node for node in prompt.values() if node["class_type"] == "FleetCollector")
    saver = {"images": collector["inputs"]["images"], "filename_prefix": "on-the-way"}
    prompt["saver"] = {"class_type": "TestSaver", "inputs": saver}
    collector["inputs"]["images"] = ["saver", 0]
    entry = shared.run(prompt)
    kept = sorted((shared.base / "output").glob("on-the-way*"))
    collected = {Image.open(path).tobytes() for path in shared.files(entry, "7")}
    assert len(kept) == 4 and {Image.open(path).tobytes() for path in kept} == collected


def test_nothing_is_overwritten_when_all_save_under_one_name(server: Master) -> None:
    share(server, master_computes=True)
    before = set((server.base / "output").glob("crowd*"))
    colors = range(0x101010, 0x101010 + 30)
    ids = [server.queue(saved(color, "crowd")) for color in colors]
    entries = [server.finish(prompt_id) for prompt_id in ids]
    paths = [server.files(entry, "3")[0] for entry in entries]
    found = []
    for path in paths:
        with Image.open(path) as image:
            red, green, blue = image.getpixel((0, 0))
        found.append((red << 16) + (green << 8) + blue)
    assert found == list(colors)
    assert set((server.base / "output").glob("crowd*")) - before == set(paths)


# The queue in the hands of its clients.


def test_two_clients_see_their_own_prompts_only(shared: Master, gates: Gates) -> None:
    from concurrent.futures import ThreadPoolExecutor

    gates.open("one", "two")
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(
            lambda name: record(shared, gates.prompt(name, len(name))), ("one", "two")
        )
    for each in (one, two):
        assert [e.node for e in each.events if e.kind == "executed"] == ["3"]
        assert each.events[-1] == Event("executing")


def test_the_queue_can_be_reordered_and_pruned(shared: Master, gates: Gates) -> None:
    held = hold(shared, gates, "p", "q").values()
    later, gone = shared.queue(gates.prompt("later", 1)), shared.queue(gates.prompt("gone", 2))
    body = {"prompt": gates.prompt("first", 3), "front": True}
    first = str(shared.post("/prompt", body)["prompt_id"])
    assert queued(shared)[1] == [first, later, gone]
    shared.post("/queue", {"delete": [gone]})
    assert queued(shared)[1] == [first, later]
    gates.open("p")
    gates.wait("first")
    assert not gates.reached("later")
    gates.open("q", "first", "later")
    for prompt_id in [*held, first, later]:
        assert shared.finish(prompt_id)["status"]["status_str"] == "success"
    assert not shared.get(f"/history/{gone}") and not gates.reached("gone")


def test_the_queue_can_be_cleared(shared: Master, gates: Gates) -> None:
    held = hold(shared, gates, "r", "s").values()
    for _ in range(5):
        shared.queue(gates.prompt("never", 4))
    shared.post("/queue", {"clear": True})
    assert queued(shared)[1] == []
    gates.open("r", "s")
    for prompt_id in held:
        shared.finish(prompt_id)
    assert not gates.reached("never")


def test_one_running_prompt_is_interrupted_and_no_other(shared: Master, gates: Gates) -> None:
    stay, stopped = shared.queue(gates.prompt("stay", 1)), gates.prompt("stop", 2)

    def cancel() -> float:
        gates.forget("stop")
        stop = shared.queue(stopped)
        gates.wait("stay", "stop")
        wait_to_run(shared, stay, stop)
        began = time.monotonic()
        shared.post("/interrupt", {"prompt_id": stop})
        entry = shared.finish(stop)
        took = time.monotonic() - began
        assert entry["status"]["messages"][-1][0] == "execution_interrupted"
        return took

    assert_in_time(cancel)
    after = shared.queue(gates.prompt("after", 3))
    gates.wait("after")
    gates.open("stay", "after")
    for prompt_id in (stay, after):
        assert shared.finish(prompt_id)["status"]["status_str"] == "success"


def test_the_masters_own_prompt_is_interrupted_and_no_other(server: Master, gates: Gates) -> None:
    share(server, master_computes=True)
    held = hold(server, gates, "k", "l", "m")
    server.post("/interrupt", {"prompt_id": held["master"]})
    assert server.finish(held["master"])["status"]["status_str"] == "error"
    gates.open("k", "l", "m")
    for worker in ("cpu-0", "cpu-1"):
        assert server.finish(held[worker])["status"]["status_str"] == "success"


def test_interrupt_without_an_id_stops_all_that_runs(server: Master, gates: Gates) -> None:
    share(server, master_computes=True)
    held = hold(server, gates, "t", "u", "v")
    server.post("/interrupt", {})
    for prompt_id in held.values():
        assert server.finish(prompt_id)["status"]["status_str"] == "error"


def test_switching_off_leaves_the_rest_to_the_master(server: Master, gates: Gates) -> None:
    share(server)
    ids = [server.queue(gates.prompt(name, i)) for i, name in enumerate(["e", "f", "g"])]
    gates.wait("e", "f")
    wait_to_run(server, *ids[:2])
    unshare(server)
    assert gates.wait("g") == ["master"]
    gates.open("e", "f", "g")
    for prompt_id in ids:
        assert server.finish(prompt_id)["status"]["status_str"] == "success"


# Workers with faults.


def test_a_fault_of_one_worker_costs_nothing(shared: Master) -> None:
    for color in range(100, 104):
        shared.run(fault("cpu-0", color=color))


def test_a_node_that_ends_the_program_costs_a_worker_and_no_picture(shared: Master) -> None:
    for color in range(110, 113):
        shared.run(fault("cpu-0", "exit", color=color))


def test_files_that_no_node_names_keep_their_names(shared: Master, gates: Gates) -> None:
    """Though the second attempt saves one more, whose name comes before the first one's."""
    ids = [shared.queue(gates.prompt(name, 110)) for name in ("n0", "n1")]
    at = dict(zip(gates.wait("n0", "n1"), ("n0", "n1"), strict=True))
    gates.open(at["cpu-0"])
    prompt = fault("cpu-0", color=111)
    prompt["4"] = {"class_type": "TestNote", "inputs": {"image": ["1", 0], "name": "z.txt"}}
    prompt["2"]["inputs"]["image"] = ["4", 0]
    prompt["5"] = {"class_type": "TestNote", "inputs": {"image": ["2", 0], "name": "a.txt"}}
    prompt["3"]["inputs"]["images"] = ["5", 0]
    noted = shared.queue(prompt)
    output = shared.base / "output"
    wait_until((output / "z.txt").exists, "the first attempt")
    gates.open(at["cpu-1"])
    for prompt_id in (*ids, noted):
        assert shared.finish(prompt_id)["status"]["status_str"] == "success"
    assert [(output / name).read_text() for name in ("a.txt", "z.txt")] == [
        "this is a.txt", "this is z.txt"
    ]  # fmt: skip


@pytest.mark.parametrize("on", ["cpu-0", "cpu-1"])
def test_out_of_memory_on_one_worker_runs_on_the_other(shared: Master, on: str) -> None:
    shared.run(fault(on, "memory", color=int(on[-1]) + 200))


def test_out_of_memory_everywhere_is_said(shared: Master) -> None:
    entry = shared.finish(shared.queue(fault("all", "memory", color=300)))
    assert "memory" in error_of(entry)


def vanishing(on: str, color: int) -> dict[str, Any]:
    inputs = {"images": ["1", 0], "filename_prefix": "vanishing", "on": on}
    return picture(color) | {"3": {"class_type": "TestVanisher", "inputs": inputs}}


def test_a_saved_picture_that_is_not_there_is_made_elsewhere(shared: Master) -> None:
    for color in range(120, 123):
        (file,) = shared.files(shared.run(vanishing("cpu-0", color)), "3")
        assert file.is_file()
    entry = shared.finish(shared.queue(vanishing("cpu-0,cpu-1", 123)))
    assert "is not in this worker's output folder" in error_of(entry)


# Bad input.


def refused(server: Master, path: str, body: Any, status: int) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(path, body)
    assert caught.value.code == status
    return caught.value.read().decode()


def test_bad_requests_say_what_is_allowed(shared: Master) -> None:
    base = "/comfyfleet/v1"
    assert "object" in refused(shared, f"{base}/share", [], 400)
    assert "true or false" in refused(shared, f"{base}/share", {"on": 1}, 400)
    assert "give" in refused(shared, f"{base}/share", {}, 400)
    bad = {"on": True, "stagger_s": -1}
    assert "0 to 86400" in refused(shared, f"{base}/share", bad, 400)
    assert "see /comfyfleet/v1/status" in refused(shared, f"{base}/runs/none/cancel", {}, 404)
    assert "cpu-0, cpu-1" in refused(shared, f"{base}/workers/cpu-9/restart", {}, 404)
    assert "enable, disable" in refused(shared, f"{base}/workers/cpu-0/fly", {}, 400)


def test_two_masters_on_one_user_folder(shared: Master, comfyui: Path, tmp_path: Path) -> None:
    flags = ["--user-directory", str(shared.base / "user")]
    other = Master(comfyui, tmp_path / "other", workers="cpu", flags=flags)
    try:
        assert "queue.sqlite3" in refused(other, "/comfyfleet/v1/share", {"on": True}, 503)
        other.run(saved(5))
    finally:
        other.close()


def test_a_disabled_worker_gets_nothing_until_it_is_enabled(shared: Master, gates: Gates) -> None:
    shared.post("/comfyfleet/v1/workers/cpu-1/disable", {})
    try:
        names = [f"d{i}" for i in range(3)]
        gates.open(*names)
        for prompt_id in [shared.queue(gates.prompt(name, 60)) for name in names]:
            shared.finish(prompt_id)
        assert {gates.who(name) for name in names} == {"cpu-0"}
    finally:
        shared.post("/comfyfleet/v1/workers/cpu-1/enable", {})
    ids = [shared.queue(gates.prompt(name, 61)) for name in ("v", "w")]
    assert sorted(gates.wait("v", "w")) == ["cpu-0", "cpu-1"]
    gates.open("v", "w")
    for prompt_id in ids:
        shared.finish(prompt_id)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/free", {"unload_models": True, "free_memory": True}),
        ("/comfyfleet/v1/workers/cpu-0/free", {}),
        ("/comfyfleet/v1/workers/all/free", {}),
    ],
    ids=["comfyui", "one", "all"],
)
def test_free_memory_reaches_workers(
    shared: Master, gates: Gates, path: str, asked: dict[str, Any]
) -> None:
    """What a worker has cached is what it holds besides models."""
    prompt = gates.prompt("kept", len(path))
    gates.open("kept")

    def is_computed() -> bool:
        gates.forget("kept")
        shared.run(prompt)
        return gates.reached("kept")

    shared.post("/comfyfleet/v1/workers/cpu-1/disable", {})
    try:
        assert is_computed() and not is_computed()
        shared.post(path, asked)
        wait_until(is_computed, "cpu-0 to have freed its memory")
    finally:
        shared.post("/comfyfleet/v1/workers/cpu-1/enable", {})


def test_in_a_staggered_start_one_device_loads_after_the_other(
    server: Master, gates: Gates
) -> None:
    """And whoever holds the model by then does not wait."""
    asked = {"on": True, "stagger_s": 2.5, "master_computes": False}
    server.post("/comfyfleet/v1/share", asked)
    try:
        begun = time.monotonic()
        ids = [server.queue(with_model(gates.prompt(name))) for name in ("s0", "s1")]
        assert sorted(gates.wait("s0", "s1")) == ["cpu-0", "cpu-1"]
        assert time.monotonic() - begun > 2.5
        gates.open("s0", "s1", "s2", "s3")
        ids += [server.queue(with_model(gates.prompt(name))) for name in ("s2", "s3")]
        for prompt_id in ids:
            assert server.finish(prompt_id)["status"]["status_str"] == "success"
    finally:
        server.post("/comfyfleet/v1/share", {**asked, "stagger_s": 0})


def with_model(held: dict[str, Any]) -> dict[str, Any]:
    """A prompt with a gate, whose picture a model draws."""
    inputs = {**held["2"]["inputs"], "image": ["6", 0]}
    drawn = prompts.demo(seed=4)
    drawn["7"]["inputs"]["images"] = ["gate", 0]
    return {**drawn, "gate": {**held["2"], "inputs": inputs}}


def test_a_run_can_be_cancelled_by_its_id(shared: Master, gates: Gates) -> None:
    prompt_id = shared.queue(gates.prompt("cancelled", 80))
    gates.wait("cancelled")
    shared.post(f"/comfyfleet/v1/runs/{run_of(shared, prompt_id)}/cancel", {})
    assert shared.finish(prompt_id)["status"]["status_str"] == "error"


def test_a_run_that_waits_can_be_cancelled_by_its_id(shared: Master, gates: Gates) -> None:
    """Its prompt had stayed in the queue, where nobody was to take it."""
    held = hold(shared, gates, "w0", "w1").values()
    prompt_id = shared.queue(gates.prompt("waits", 81))
    shared.post(f"/comfyfleet/v1/runs/{run_of(shared, prompt_id)}/cancel", {})
    messages = shared.finish(prompt_id)["status"]["messages"]
    assert [kind for kind, _ in messages] == ["execution_interrupted"]
    assert queued(shared)[1] == []
    gates.open("w0", "w1")
    for each in held:
        assert shared.finish(each)["status"]["status_str"] == "success"
    assert not gates.reached("waits")


def test_a_run_of_the_master_can_be_cancelled_by_its_id(server: Master, gates: Gates) -> None:
    share(server, master_computes=True)
    held = hold(server, gates, "m0", "m1", "m2")
    server.post(f"/comfyfleet/v1/runs/{run_of(server, held['master'])}/cancel", {})
    assert server.finish(held["master"])["status"]["status_str"] == "error"
    after = server.queue(gates.prompt("m3", 82))
    assert gates.wait("m3") == ["master"]
    gates.open("m0", "m1", "m2", "m3")
    for prompt_id in (held["cpu-0"], held["cpu-1"], after):
        assert server.finish(prompt_id)["status"]["status_str"] == "success"


def run_of(server: Master, prompt_id: str) -> str:
    """The id of its run, which is known a moment after it was queued."""

    def found() -> list[str]:
        runs = server.get("/comfyfleet/v1/status")["runs"]
        return [run["id"] for run in runs if run["prompt_id"] == prompt_id]

    (run_id,) = wait_until(found, "its run")
    return str(run_id)


def test_a_restarted_worker_loses_nothing(shared: Master, gates: Gates) -> None:
    ids = [shared.queue(gates.prompt(name, 70)) for name in ("g0", "g1")]
    where = dict(zip(gates.wait("g0", "g1"), ("g0", "g1"), strict=True))
    shared.post("/comfyfleet/v1/workers/cpu-0/restart", {})
    gates.open("g0", "g1")
    assert where
    for prompt_id in ids:
        assert shared.finish(prompt_id)["status"]["status_str"] == "success"
    third = [shared.queue(gates.prompt(name, 71)) for name in ("h0", "h1")]
    assert sorted(gates.wait("h0", "h1")) == ["cpu-0", "cpu-1"]
    gates.open("h0", "h1")
    for prompt_id in third:
        shared.finish(prompt_id)


def test_prompts_with_an_id_of_their_own_keep_it(shared: Master) -> None:
    prompt_id = str(uuid.uuid4())
    shared.post("/prompt", {"prompt": saved(90), "prompt_id": prompt_id})
    assert shared.finish(prompt_id)["status"]["status_str"] == "success"
