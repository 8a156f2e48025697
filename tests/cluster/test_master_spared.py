"""A master whose owner wants it to compute nothing that its workers can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import prompts
from tests.queue_bed.bed import PACK as QUEUE_PACK
from tests.queue_bed.bed import Gates, picture, queued, save, share, unshare
from tests.support import Master
from tests.upscale_bed.bed import Bed, Prompt, demo

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def bed(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Bed]:
    settings = {"COMFYFLEET_MASTER": "0", "COMFYFLEET_BRANCHES": "1"}
    running = Bed(comfyui, tmp_path_factory.mktemp("spared"), "cpu,cpu", settings=settings)
    running.ready()
    yield running
    running.master.close()


def sampled(seed: int = 7, **inputs: Any) -> Prompt:
    """The demo model's sampler, which notes who runs it, and a collector; ``inputs`` of that."""
    prompt = demo()
    given = {
        "seed": ["11", 0],
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    sampler = {**given, "denoise": 1.0, "model": ["3", 0], "latent_image": ["7", 0]}
    latent = {"width": 64, "height": 64, "batch_size": 1}
    decoded = {"samples": ["8", 0], "vae": ["2", 2]}
    own: Prompt = {
        "7": {"class_type": "EmptyLatentImage", "inputs": latent},
        "8": {
            "class_type": "KSampler",
            "inputs": {**sampler, "positive": ["4", 0], "negative": ["5", 0]},
        },
        "9": {"class_type": "VAEDecode", "inputs": decoded},
    }
    collect = {"images": ["9", 0], "shares": 0, "delegate": False, **inputs}
    own["11"] = {"class_type": "FleetSeed", "inputs": {"seed": seed}}
    own["10"] = {"class_type": "FleetCollector", "inputs": collect}
    return {key: prompt[key] for key in ("2", "3", "4", "5")} | own


def test_what_is_queued_while_the_workers_start_waits_for_them(
    comfyui: Path, tmp_path: Path, gates: Gates, nothing_left: None
) -> None:
    """Whole, also where branches are looked for: the workers are busy with prompts then."""
    settings = {"COMFYFLEET_SHARE": "1", "COMFYFLEET_MASTER": "0", "COMFYFLEET_BRANCHES": "1"}
    go_on = tmp_path / "go on"
    packs = {"queue_bed": QUEUE_PACK, "late": waiting_for(go_on, tmp_path / "late")}
    master = Master(comfyui, tmp_path / "base", workers="cpu", packs=packs, settings=settings)
    try:
        sampled_id, prompt_id = master.queue(prompts.demo()), master.queue(gates.prompt("early"))
        _, waiting = queued(master)
        assert waiting == [sampled_id, prompt_id]
        go_on.touch()
        assert gates.wait("early") == ["cpu-0"]
        gates.open("early")
        assert master.finish(prompt_id)["status"]["status_str"] == "success"
        ran = master.finish(sampled_id)["prompt"][2]
        assert "FleetBranch" not in {node["class_type"] for node in ran.values()}
    finally:
        master.close()


def waiting_for(file: Path, pack: Path) -> Path:
    """A pack with which no worker is there before this file is."""
    pack.mkdir()
    look = f"while os.environ.get('COMFYFLEET_WORKER') and not os.path.exists({str(file)!r}):"
    code = f"import os, time\n{look}\n    time.sleep(0.05)\nNODE_CLASS_MAPPINGS = {{}}\n"
    (pack / "__init__.py").write_text(code)
    return pack


def test_without_any_worker_the_master_computes(
    comfyui: Path, tmp_path: Path, gates: Gates, nothing_left: None
) -> None:
    settings = {"COMFYFLEET_MASTER": "0", "COMFYFLEET_SHARE": "1"}
    packs = {"queue_bed": QUEUE_PACK}
    master = Master(comfyui, tmp_path / "base", workers="0", packs=packs, settings=settings)
    try:
        gates.open("alone")
        master.run(gates.prompt("alone"))
        assert gates.who("alone") == "master"
    finally:
        master.close()


def test_where_no_worker_can_be_started_the_master_computes(
    comfyui: Path, tmp_path: Path, nothing_left: None
) -> None:
    pack = tmp_path / "broken"
    pack.mkdir()
    ends = "import os\nif os.environ.get('COMFYFLEET_WORKER'):\n    os._exit(3)\n"
    (pack / "__init__.py").write_text(f"{ends}NODE_CLASS_MAPPINGS = {{}}\n")
    settings = {"COMFYFLEET_MASTER": "0"}
    packs = {"broken": pack}
    master = Master(comfyui, tmp_path / "base", workers="cpu", packs=packs, settings=settings)
    try:
        branch = {"class_type": "FleetBranch", "inputs": {"value": ["1", 0]}}
        master.run(picture(1) | {"2": branch, "3": save(["2", 0])})
        collect = {"images": ["1", 0], "shares": 2, "delegate": False}
        collector = {"class_type": "FleetCollector", "inputs": collect}
        entry = master.run(picture(2) | {"2": collector, "3": save(["2", 0])})
        assert len(master.files(entry, "3")) == 2
    finally:
        master.close()


@pytest.mark.parametrize("shares", [0, 1, 5])
def test_no_share_of_a_collector_is_computed_here(bed: Bed, shares: int) -> None:
    prompt = sampled(seed=100 * shares, shares=shares)
    found = bed.compute(prompt, ["10", 0])
    assert len(found) == sum(bed.samplings.values()) == (shares or 2)
    assert "master" not in bed.samplings


def test_a_share_that_a_preview_needs_too_is_computed_once(bed: Bed) -> None:
    prompt = sampled(seed=950, shares=4)
    prompt["13"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    assert len(bed.compute(prompt, ["10", 0])) == sum(bed.samplings.values()) == 4
    assert bed.samplings["master"] == 1


def test_collectors_in_a_row_count_the_workers_alike(bed: Bed) -> None:
    prompt = sampled(seed=900)
    prompt["12"] = {**prompt["10"], "inputs": {**prompt["10"]["inputs"], "images": ["10", 0]}}
    assert len(bed.compute(prompt, ["12", 0])) == 4
    assert "master" not in bed.samplings


def test_no_tile_is_computed_here_and_the_picture_is_the_same(bed: Bed) -> None:
    prompt = demo(width=160, height=160, blend="independent", seed=3)
    spared = bed.compute(prompt, ["6", 0])
    assert set(bed.samplings) <= {"cpu-0", "cpu-1"} and sum(bed.samplings.values()) == 25
    share(bed.master, master_computes=True)
    try:
        prompt["3"]["inputs"]["note"] = "computed again"
        with bed.meeting("master"):
            assert np.array_equal(bed.compute(prompt, ["6", 0]), spared)
    finally:
        unshare(bed.master)


def test_the_only_sampler_of_a_prompt_is_a_branch(bed: Bed) -> None:
    prompt = sampled()
    del prompt["10"]
    bed.compute(prompt, ["9", 0])
    assert sum(bed.samplings.values()) == 1 and "master" not in bed.samplings


def test_what_no_worker_has_is_computed_here(bed: Bed) -> None:
    prompt = sampled(shares=3)
    prompt["9"] = {"class_type": "TestHere", "inputs": {"samples": ["8", 0], "vae": ["2", 2]}}
    assert len(bed.compute(prompt, ["10", 0])) == 3
    assert set(bed.samplings) == {"master"}


def test_in_a_shared_queue_whole_prompts_go_to_workers(bed: Bed) -> None:
    share(bed.master)
    try:
        prompt = sampled()
        del prompt["10"]
        bed.compute(prompt, ["9", 0])
        (run,) = bed.master.get("/comfyfleet/v1/status")["runs"][-1:]
        assert run["prompt_id"] and "master" not in bed.samplings
    finally:
        unshare(bed.master)


def test_in_a_shared_queue_only_a_prompt_that_is_alone_is_taken_apart(bed: Bed) -> None:
    share(bed.master, master_computes=True)
    bed.forget()
    try:
        with bed.meeting("both are queued"):
            queued = [bed.master.queue(bed.here(two_ways(seed))) for seed in (1000, 1010)]
            bed.meet("both are queued")
        prompts = [bed.master.finish(prompt_id)["prompt"][2] for prompt_id in queued]
    finally:
        unshare(bed.master)
    classes = [[node["class_type"] for node in prompt.values()] for prompt in prompts]
    assert [each.count("FleetBranch") for each in classes] == [1, 0]


def two_ways(seed: int) -> Prompt:
    """Two samplers behind the same models, and two pictures that are shown."""
    prompt = sampled(seed=seed)
    sampler = prompt["8"]["inputs"]
    prompt["18"] = {"class_type": "KSampler", "inputs": {**sampler, "seed": seed + 1}}
    prompt["19"] = {"class_type": "VAEDecode", "inputs": {"samples": ["18", 0], "vae": ["2", 2]}}
    for end, link in (("10", "9"), ("20", "19")):
        prompt[end] = {"class_type": "PreviewImage", "inputs": {"images": [link, 0]}}
    return prompt
