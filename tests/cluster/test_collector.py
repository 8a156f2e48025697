"""Collectors through /prompt of a real ComfyUI with two real workers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import prompts
from tests.support import Master, error_of, fleets, wait_until

pytestmark = pytest.mark.cluster


def pictures(paths: list[Path]) -> list[np.ndarray]:
    """The pixels of pictures: [H, W, C] in 8 bit."""
    loaded = []
    for path in paths:
        with Image.open(path) as picture:
            loaded.append(np.asarray(picture))
    return loaded


def pixels(paths: list[Path]) -> list[str]:
    """A digest of each picture's pixels."""
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures(paths)]


def worker_logs(master: Master) -> list[str]:
    records = fleets(master.process.pid)
    return [
        Path(worker["log_file"]).read_text() for record in records for worker in record["workers"]
    ]


def prompts_of_workers(master: Master) -> int:
    """How many they were given so far. That one has ended may be logged after its result came."""
    return sum(log.count("got prompt") for log in worker_logs(master))


def test_object_info_lists_the_nodes(master: Master) -> None:
    info = master.get("/object_info")
    ours = {"FleetSeed", "FleetCollector", "FleetValue", "FleetBatchDivider", "FleetModelName"}
    ours |= {"FleetAudioBatchDivider", "FleetEmptyImage", "FleetDemoModel"}
    old = {"DistributedSeed", "DistributedCollector", "DistributedValue", "ImageBatchDivider"}
    old |= {"AudioBatchDivider", "DistributedModelName", "DistributedEmptyImage"}
    assert ours | old <= set(info)
    assert "IMPORT FAILED" not in master.log.read_text()


def test_shares_equal_one_machine_doing_all_of_them(master: Master) -> None:
    entry = master.run(prompts.collected(shares=6, seed=40))
    alone = [master.files(master.run(prompts.demo(seed=40 + share)), "7")[0] for share in range(6)]
    assert pixels(master.files(entry, "7")) == pixels(alone)


def test_delegate_gives_the_same_and_leaves_the_master_idle(master: Master) -> None:
    mixed = master.run(prompts.collected(shares=5, seed=70))
    before = prompts_of_workers(master)
    delegated = master.run(prompts.collected(shares=5, seed=70, delegate=True))
    after = prompts_of_workers(master)
    assert pixels(master.files(mixed, "7")) == pixels(master.files(delegated, "7"))
    assert after - before == 5


def test_shares_0_is_one_for_each_device(master: Master) -> None:
    entry = master.run(prompts.collected(shares=0, seed=11))
    assert len(set(pixels(master.files(entry, "7")))) == 3


def test_a_cached_collector_dispatches_nothing(master: Master) -> None:
    master.run(prompts.collected(shares=4, seed=90))
    before = prompts_of_workers(master)
    master.run(prompts.collected(shares=4, seed=90))
    assert prompts_of_workers(master) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"sizes": "16\n24\n32", "shares": 3}, {"sizes": "16\n24\n40", "shares": 3}),
        ({"sizes": "16\n24", "shares": 3}, {"sizes": "16\n24", "shares": 5}),
    ],
)
def test_nothing_of_an_earlier_prompt_comes_back(
    master: Master, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Shares that the master computes by expansion are another prompt's, not the cache's."""
    master.run(prompts.empty_images(output=2, **first))
    entry = master.run(prompts.empty_images(output=2, **second))
    lines = second["sizes"].split()
    widths = [picture.shape[1] for picture in pictures(master.files(entry, "4"))]
    assert widths == [int(lines[i % len(lines)]) for i in range(second["shares"])]


def test_an_output_wired_later_is_said_to_be_missing(master: Master) -> None:
    """The collector comes from ComfyUI's cache, made when nothing used its joined images."""
    master.run(prompts.empty_images(sizes="48\n56", shares=2, output=2))
    entry = master.finish(master.queue(prompts.empty_images(sizes="48\n56", shares=2, output=0)))
    assert "cannot be one batch" in error_of(entry)


def test_different_sizes_are_an_error_that_names_the_shares(master: Master) -> None:
    entry = master.finish(master.queue(prompts.empty_images(sizes="16\n32\n16", shares=3)))
    text = error_of(entry)
    assert entry["status"]["status_str"] == "error"
    assert "16x16 with 3 channels" in text and "in share 0, 2" in text
    assert "32x16" in text and "images_list" in text


def test_different_sizes_come_as_a_list(master: Master) -> None:
    entry = master.run(prompts.empty_images(sizes="16\n32\n24", shares=3, output=2))
    shapes = [picture.shape for picture in pictures(master.files(entry, "4"))]
    assert shapes == [(16, 16, 3), (16, 32, 3), (16, 24, 3)]


def test_alpha_is_kept(master: Master) -> None:
    prompt = prompts.empty_images(sizes="16\n16", shares=2)
    mask = {"value": 0.25, "width": 16, "height": 16}
    prompt["5"] = {"class_type": "SolidMask", "inputs": mask}
    join = {"image": ["2", 0], "alpha": ["5", 0]}
    prompt["6"] = {"class_type": "JoinImageWithAlpha", "inputs": join}
    prompt["3"]["inputs"]["images"] = ["6", 0]
    entry = master.run(prompt)
    saved = pictures(master.files(entry, "4"))
    assert [picture.shape for picture in saved] == [(16, 16, 4), (16, 16, 4)]
    assert {int(alpha) for picture in saved for alpha in picture[..., 3].flat} == {191}


def test_values_of_any_type_come_back_in_order(master: Master) -> None:
    """LATENTs through the wildcard input, decoded only after they were collected."""
    prompt = prompts.collected(shares=4, seed=40)
    prompt["9"]["inputs"] = {"value": ["5", 0], "shares": 4, "delegate": False}
    prompt["6"]["inputs"]["samples"] = ["9", 3]
    prompt["7"]["inputs"]["images"] = ["6", 0]
    entry = master.run(prompt)
    direct = master.run(prompts.collected(shares=4, seed=40))
    assert pixels(master.files(entry, "7")) == pixels(master.files(direct, "7"))


def test_audio_is_joined_in_time(master: Master) -> None:
    audio = {"duration": ["1", 0], "sample_rate": 8000, "channels": 1}
    prompt = {
        "1": {"class_type": "FleetValue", "inputs": {"values": "1\n2\n3", "type": "FLOAT"}},
        "2": {"class_type": "EmptyAudio", "inputs": audio},
        "3": {
            "class_type": "FleetCollector",
            "inputs": {"audio": ["2", 0], "shares": 3, "delegate": False},
        },
        "4": {
            "class_type": "SaveAudio",
            "inputs": {"audio": ["3", 1], "filename_prefix": "sound"},
        },
    }
    entry = master.run(prompt)
    saved = entry["outputs"]["4"]["audio"][0]
    import av

    with av.open(str(master.base / "output" / saved["subfolder"] / saved["filename"])) as sound:
        assert round(sound.duration / av.time_base, 2) == 6.0


def test_an_output_whose_input_is_not_connected_is_an_error(master: Master) -> None:
    prompt = prompts.empty_images(sizes="16", shares=2, output=0)
    prompt["3"]["inputs"] = {"value": ["2", 0], "shares": 2, "delegate": False}
    entry = master.finish(master.queue(prompt))
    assert "output images is used" in error_of(entry)


def test_a_failing_share_fails_the_prompt_with_the_workers_traceback(master: Master) -> None:
    prompt = prompts.empty_images(sizes="16\n-5", shares=2, delegate=True)
    entry = master.finish(master.queue(prompt))
    text = error_of(entry)
    assert entry["status"]["status_str"] == "error"
    assert "node 2 (EmptyImage)" in text and "Traceback" not in text.splitlines()[0]
    assert "nodes.py" in text, "the worker's own traceback"


def test_cancel_reaches_the_workers(master: Master) -> None:
    master.run(prompts.collected(shares=3, seed=5))
    before = worker_logs(master)

    def say(text: str) -> bool:
        """Do all workers say it once more than before?"""
        both = zip(worker_logs(master), before, strict=True)
        return all(log.count(text) > old.count(text) for log, old in both)

    prompt_id = master.queue(prompts.collected(shares=9, seed=6, steps=10000))
    wait_until(lambda: master.get("/queue")["queue_running"], "the prompt to run")
    wait_until(lambda: say("/10000"), "the workers to sample")
    master.post("/interrupt", {})
    entry = master.finish(prompt_id)
    assert entry["status"]["status_str"] == "error"
    wait_until(lambda: say("Processing interrupted"), "the workers to stop")
    master.run(prompts.collected(shares=3, seed=5))


def values(lines: str) -> dict[str, Any]:
    """A whole number for each share."""
    return {"class_type": "FleetValue", "inputs": {"values": lines, "type": "INT"}}


def test_a_failing_master_share_cancels_the_others(master: Master) -> None:
    """The master's is soon done with its sampler, and fails behind it; the others never are."""
    prompt = prompts.collected(shares=5, seed=77)
    prompt["8"] = values("-7\n1\n2\n3\n4")
    prompt["11"] = values("\n".join(["1", *["10000"] * 4]))
    prompt["5"]["inputs"]["steps"] = ["11", 0]
    size = {"width": ["8", 0], "height": 16, "batch_size": 1, "color": 0}
    prompt["5"]["inputs"]["seed"] = 3
    prompt["10"] = {"class_type": "EmptyImage", "inputs": size}
    prompt["9"]["inputs"]["value"] = ["10", 0]
    known = {run["id"] for run in master.get("/comfyfleet/v1/status")["runs"]}
    entry = master.finish(master.queue(prompt))
    assert entry["status"]["status_str"] == "error"

    def outcomes() -> list[str]:
        """Of what it has begun; the fleet may not have been told of it before the master fails."""
        runs = master.get("/comfyfleet/v1/status")["runs"]
        return [run["outcome"] for run in runs if run["id"] not in known and run["ended"]]

    assert wait_until(outcomes, "the end of the others") == ["cancelled"]
    wait_until(lambda: set(master.states().values()) == {"idle"}, "the workers to stop")


def test_chained_collectors_give_what_one_machine_gives(master: Master) -> None:
    """A collector upstream of a collector: each outer share collects its own inner ones."""
    prompt = prompts.empty_images(sizes="16\n16", shares=2)
    inner: dict[str, Any] = {"images": ["3", 0], "shares": 2, "delegate": False}
    prompt["5"] = {"class_type": "FleetCollector", "inputs": inner}
    prompt["4"]["inputs"]["images"] = ["5", 0]
    entry = master.run(prompt)
    assert len(master.files(entry, "4")) == 4


def test_a_workflow_of_the_peer_runs_unchanged(master: Master) -> None:
    prompt = prompts.demo(steps=4)
    prompt["8"] = {"class_type": "DistributedSeed", "inputs": {"seed": 40}}
    prompt["5"]["inputs"]["seed"] = ["8", 0]
    old = {"images": ["6", 0], "load_balance": False}
    prompt["9"] = {"class_type": "DistributedCollector", "inputs": old}
    divide = {"images": ["9", 0], "divide_by": 3}
    prompt["10"] = {"class_type": "ImageBatchDivider", "inputs": divide}
    prompt["7"]["inputs"]["images"] = ["10", 2]
    entry = master.run(prompt)
    alone = master.run(prompts.demo(seed=42))
    assert pixels(master.files(entry, "7")) == pixels(master.files(alone, "7"))


def test_the_peers_sound_output_is_silence_where_none_is_connected(master: Master) -> None:
    prompt = prompts.demo(steps=4, seed=44)
    old = {"images": ["6", 0], "load_balance": False}
    prompt["9"] = {"class_type": "DistributedCollector", "inputs": old}
    prompt["7"]["inputs"]["images"] = ["9", 0]
    audio = {"audio": ["9", 1], "filename_prefix": "silence"}
    prompt["10"] = {"class_type": "SaveAudio", "inputs": audio}
    entry = master.run(prompt)
    assert len(entry["outputs"]["10"]["audio"]) == 1


def test_load_balance_of_the_peer_runs_once(master: Master) -> None:
    prompt = prompts.demo(steps=4, seed=43)
    old = {"images": ["6", 0], "load_balance": True}
    prompt["9"] = {"class_type": "DistributedCollector", "inputs": old}
    prompt["7"]["inputs"]["images"] = ["9", 0]
    entry = master.run(prompt)
    assert len(master.files(entry, "7")) == 1
