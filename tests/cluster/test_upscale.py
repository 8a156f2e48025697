"""The same pixels on one, two and three devices, bit by bit, through real ComfyUIs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import error_of, wait_until
from tests.upscale_bed.bed import Bed, Prompt, beds, demo, node

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def devices(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Mapping[int, Bed]]:
    with beds(comfyui, tmp_path_factory.mktemp("devices")) as running:
        for bed in running.values():
            bed.order("delay", "0.05")
        for count in (2, 3):
            running[count].ready()
        yield running


CASES = {
    "linear": {},
    "chess": {"mode_type": "Chess"},
    "independent": {"blend": "independent"},
    "static": {"distribution": "static", "blend": "independent"},
    "static progressive": {"distribution": "static", "mode_type": "Chess"},
    "band pass": {"seam_fix_mode": "Band Pass"},
    "half tile": {"seam_fix_mode": "Half Tile", "mode_type": "None"},
    "intersections": {"seam_fix_mode": "Half Tile + Intersections", "blend": "independent"},
    "tiles of their own size": {"force_uniform_tiles": False, "tiled_decode": True},
    "batch of 3": {"count": 3, "upscale_by": 1.0},
    "tiles in batches": {"batch_size": 2, "mode_type": "Chess"},
    "odd, with alpha": {"width": 71, "height": 93, "channels": 4, "upscale_by": 1.0},
    "tile larger than the picture": {"tile_width": 512, "tile_height": 640, "width": 50},
    "padding larger than the tile": {"tile_padding": 104},
}


@pytest.mark.parametrize("case", CASES)
def test_one_two_and_three_devices_make_the_same_picture(
    devices: Mapping[int, Bed], case: str
) -> None:
    prompt = demo(**CASES[case])
    one, two, three = (devices[count].compute(prompt, ["6", 0]) for count in (1, 2, 3))
    assert one.dtype == np.float32 and np.isfinite(one).all() and one.std() > 0.01
    assert np.array_equal(one, two) and np.array_equal(one, three)
    # Enlarging a picture by Lanczos makes edges brighter than white.
    assert one.min() > -1e-6 and one.max() < 1 + 1e-6


def test_all_devices_take_part_and_none_does_a_tile_twice(devices: Mapping[int, Bed]) -> None:
    names = ("master", "cpu-0", "cpu-1")
    with devices[3].meeting(*names):
        devices[3].compute(demo(blend="independent", width=160, height=160), ["6", 0])
    found = devices[3].samplings
    assert set(found) == set(names) and sum(found.values()) == 25


def test_alpha_and_odd_sizes_are_kept(devices: Mapping[int, Bed]) -> None:
    found = devices[1].compute(demo(**CASES["odd, with alpha"]), ["6", 0])
    assert found.shape == (1, 93, 71, 4)
    assert devices[1].compute(demo(width=71, height=93), ["6", 0]).shape == (1, 184, 144, 3)


def test_each_prompt_of_a_list_is_its_own_pictures(devices: Mapping[int, Bed]) -> None:
    prompt = demo(seed=12, cfg=6.0, blend="independent")
    prompt["7"] = {"class_type": "TestTexts", "inputs": {"lines": "a red circle\na blue square"}}
    prompt["4"]["inputs"]["text"] = ["7", 0]
    prompt["8"] = {"class_type": "TestJoined", "inputs": {"images": ["6", 0]}}
    one = devices[1].compute(prompt, ["8", 0])
    with devices[2].meeting("master", "cpu-0"):
        two = devices[2].compute(prompt, ["8", 0])
    assert len(one) == 2 and not np.array_equal(one[0], one[1]) and np.array_equal(one, two)
    assert len(devices[2].samplings) == 2


def test_models_made_of_a_list_are_used_here_alone(devices: Mapping[int, Bed]) -> None:
    prompt = demo(seed=13)
    prompt["7"] = {"class_type": "StringTrim", "inputs": {"string": "a\nb", "mode": "Both"}}
    prompt["8"] = {"class_type": "TestTexts", "inputs": {"lines": ["7", 0]}}
    prompt["3"]["inputs"]["note"] = ["8", 0]
    prompt["9"] = {"class_type": "TestJoined", "inputs": {"images": ["6", 0]}}
    one, two = (devices[count].compute(prompt, ["9", 0]) for count in (1, 2))
    assert len(one) == 2 and np.array_equal(one, two)
    assert set(devices[2].samplings) == {"master"}


def test_a_sampler_and_sigmas_of_the_users_own(devices: Mapping[int, Bed]) -> None:
    """Steps, sampler and denoise of the node count for nothing then; its seed makes the noise that
    this sampler adds at each step."""
    own = {"custom_sampler": ["10", 0], "custom_sigmas": ["11", 0]}
    prompt = demo(**own, blend="independent", seed=18)
    prompt["10"] = node("SamplerEulerAncestral", eta=1.0, s_noise=1.0)
    schedule = {"model": ["2", 0], "scheduler": "karras", "steps": 3, "denoise": 0.5}
    prompt["11"] = node("BasicScheduler", **schedule)
    one, two = (devices[count].compute(prompt, ["6", 0]) for count in (1, 2))
    with devices[3].meeting("master", "cpu-0", "cpu-1"):
        three = devices[3].compute(prompt, ["6", 0])
    assert np.isfinite(one).all() and np.array_equal(one, two) and np.array_equal(one, three)
    prompt["6"]["inputs"] |= {"sampler_name": "dpmpp_2m", "steps": 5, "denoise": 0.9}
    assert np.array_equal(devices[1].compute(prompt, ["6", 0]), one)
    prompt["11"]["inputs"]["denoise"] = 0.3
    assert not np.array_equal(devices[1].compute(prompt, ["6", 0]), one)


def test_a_sampler_without_sigmas_is_named(devices: Mapping[int, Bed]) -> None:
    prompt = demo(custom_sampler=["10", 0]) | {"10": node("KSamplerSelect", sampler_name="euler")}
    entry = devices[1].master.finish(devices[1].master.queue(ended(devices[1], prompt)))
    assert "custom_sampler is connected, but custom_sigmas is not" in error_of(entry)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("independent", "cpu-0.kill"),
        ("linear", "cpu-0.kill"),
        ("chess", "cpu-0.kill"),
        ("band pass", "cpu-0.kill"),
        ("half tile", "cpu-0.kill"),
        ("intersections", "cpu-0.kill"),
        ("batch of 3", "cpu-0.kill"),
        ("linear", "cpu-1.reply"),
    ],
)
def test_a_killed_worker_changes_no_pixel(
    devices: Mapping[int, Bed], name: str, order: str
) -> None:
    """Where tiles wait for their neighbours too, and where seams are mended.

    A tile whose reply is lost, of a worker that is said to live, hangs the peer for ever.
    """
    prompt = demo(**{"width": 128, "height": 160, "seed": 9, **CASES[name]})
    alone = devices[1].compute(prompt, ["6", 0])
    bed = devices[3]
    bed.ready()
    assert np.array_equal(bed.compute_losing(prompt, ["6", 0], order), alone)
    # One of them in vain.
    assert sum(bed.samplings.values()) == sum(devices[1].samplings.values()) + 1
    if order == "cpu-0.kill":  # who is killed again and again is given up, unless its owner asks
        bed.master.post("/comfyfleet/v1/workers/cpu-0/restart", {})


def test_a_worker_that_fails_changes_no_pixel(devices: Mapping[int, Bed]) -> None:
    prompt = demo(mode_type="Chess", seed=10)
    alone = devices[1].compute(prompt, ["6", 0])
    bed = devices[2]
    bed.order("cpu-0.error")
    try:
        assert np.array_equal(bed.compute(prompt, ["6", 0]), alone)
    finally:
        bed.withdraw("cpu-0.error")


@pytest.mark.parametrize("short", ["master", "cpu-0"])
def test_a_device_without_the_memory_changes_no_pixel(
    devices: Mapping[int, Bed], short: str
) -> None:
    prompt = demo(mode_type="Chess", seed={"master": 14, "cpu-0": 16}[short])
    alone = devices[1].compute(prompt, ["6", 0])
    bed = devices[2]
    bed.order(f"{short}.memory")
    try:
        assert np.array_equal(bed.compute(prompt, ["6", 0]), alone)
    finally:
        bed.withdraw(f"{short}.memory")
    assert bed.samplings[short] < sum(bed.samplings.values()) / 2


def test_too_little_memory_here_while_the_worker_is_paused_is_said(
    devices: Mapping[int, Bed],
) -> None:
    bed = devices[2]
    bed.order("master.memory")
    bed.master.post("/comfyfleet/v1/workers/cpu-0/disable", {})
    try:
        entry = bed.master.finish(bed.master.queue(ended(bed, demo(seed=17))), 60)
    finally:
        bed.master.post("/comfyfleet/v1/workers/cpu-0/enable", {})
        bed.withdraw("master.memory")
    assert "told that memory is too small" in error_of(entry)


def test_too_little_memory_everywhere_is_said_with_the_devices(devices: Mapping[int, Bed]) -> None:
    bed = devices[2]
    for name in ("master", "cpu-0"):
        bed.order(f"{name}.memory")
    try:
        entry = bed.master.finish(bed.master.queue(ended(bed, demo(seed=15))))
    finally:
        for name in ("master", "cpu-0"):
            bed.withdraw(f"{name}.memory")
    message = error_of(entry)
    assert "told that memory is too small" in message
    assert "cpu-0" in message and "this device" in message


@pytest.mark.parametrize("name", ["two", "alone"])
def test_a_cancelled_upscale_stops_everywhere(devices: Mapping[int, Bed], name: str) -> None:
    bed = devices[{"two": 2, "alone": 1}[name]]
    bed.order("delay", "0.6")
    bed.forget()
    try:
        queued = bed.master.queue(ended(bed, demo(width=320, height=320, seed=11)))
        wait_until(lambda: sum(bed.samplings.values()) > 2, "some tiles")
        bed.master.post("/interrupt", {})
        entry = bed.master.finish(queued)
        assert entry["status"]["status_str"] == "error"
        assert any(what == "execution_interrupted" for what, _ in entry["status"]["messages"])
        so_far = sum(bed.samplings.values())
    finally:
        bed.order("delay", "0.05")
    bed.wait_until_idle()
    bed.compute(demo(), ["6", 0])
    assert so_far < 60 and sum(bed.samplings.values()) == 9


def test_the_old_node_is_ours_with_its_own_inputs(devices: Mapping[int, Bed]) -> None:
    prompt = demo(upscale_by=1.0, denoise=0.5, tile_padding=32)
    inputs = prompt["6"]["inputs"]
    kept = ("model", "positive", "negative", "vae", "seed", "steps", "cfg", "sampler_name")
    kept += ("scheduler", "denoise", "tile_width", "tile_height", "mask_blur")
    kept += ("force_uniform_tiles", "tiled_decode")
    old = {name: inputs[name] for name in kept}
    old |= {"upscaled_image": inputs["image"], "padding": 32, "static_distribution": True}
    expected = devices[1].compute(prompt, ["6", 0])
    prompt["6"] = {"class_type": "UltimateSDUpscaleDistributed", "inputs": old}
    for bed in (devices[1], devices[3]):
        assert np.array_equal(bed.compute(prompt, ["6", 0]), expected)


@pytest.mark.parametrize("kind", ["area", "mask"])
def test_regions_are_the_same_on_all_devices(devices: Mapping[int, Bed], kind: str) -> None:
    def regional(inputs: Prompt) -> Prompt:
        region = {"conditioning": ["4", 0], "kind": kind}
        both = {"conditioning_1": ["7", 0], "conditioning_2": ["5", 0]}
        inputs["7"] = {"class_type": "TestRegion", "inputs": region}
        inputs["8"] = {"class_type": "ConditioningCombine", "inputs": both}
        inputs["6"]["inputs"]["positive"] = ["8", 0]
        return inputs

    one, two = (devices[n].compute(regional(demo(cfg=6.0)), ["6", 0]) for n in (1, 2))
    plain = devices[1].compute(demo(cfg=6.0), ["6", 0])
    assert np.array_equal(one, two) and not np.array_equal(one, plain)


def test_regions_and_tiles_in_batches_are_refused_before_a_tile(
    devices: Mapping[int, Bed],
) -> None:
    bed, prompt = devices[2], demo(batch_size=2)
    region = {"conditioning": ["4", 0], "kind": "area"}
    prompt["7"] = {"class_type": "TestRegion", "inputs": region}
    prompt["6"]["inputs"]["positive"] = ["7", 0]
    bed.forget()
    entry = bed.master.finish(bed.master.queue(ended(bed, prompt)))
    assert "batch_size is 2, and positive has regions (area)" in error_of(entry)
    assert "node 6 (FleetUpscale)" in error_of(entry) and not bed.samplings


BAD = [
    ({"tile_width": 0}, "tile_width"),
    ({"count": 0}, "image is an empty batch"),
    ({"batch_size": 2, "force_uniform_tiles": False}, "batch_size is 2, but force_uniform_tiles"),
    ({"blend": "mixed"}, "blend"),
    ({"mode_type": "Spiral"}, "mode_type"),
    ({"seam_fix_mode": "Band Pass", "seam_fix_width": 0}, "seam_fix_width is 0"),
    ({"channels": 2}, "image has 2 channels"),
    ({"upscale_by": 0.0}, "upscale_by"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_is_said_before_a_tile_is_computed(
    devices: Mapping[int, Bed], wrong: dict[str, Any], said: str
) -> None:
    bed = devices[2]
    bed.forget()
    try:
        queued = bed.master.queue(ended(bed, demo(**wrong)))
    except AssertionError as error:  # ComfyUI itself refuses what is out of range
        assert said.split()[0] in str(error)
    else:
        entry = bed.master.finish(queued)
        assert entry["status"]["status_str"] == "error"
        assert said in error_of(entry) and "node 6 (FleetUpscale)" in error_of(entry)
    assert not bed.samplings


def ended(bed: Bed, prompt: Prompt) -> Prompt:
    """The prompt with an end."""
    inputs = {"value": ["6", 0], "path": str(bed.folder / "unused.npy")}
    return bed.here(prompt) | {"end": {"class_type": "TestDump", "inputs": inputs}}


def test_a_slow_worker_gets_fewer(devices: Mapping[int, Bed]) -> None:
    """The last one here: what is measured of a worker stays with it."""
    prompt = demo(blend="independent", width=160, height=160, seed=20)
    bed = devices[3]
    bed.ready()
    bed.order("cpu-0.slow", "3")
    try:
        found = bed.compute(prompt, ["6", 0])
    finally:
        bed.withdraw("cpu-0.slow")
    counts = bed.samplings
    assert 0 < counts["cpu-0"] < min(counts["cpu-1"], counts["master"]), counts
    assert np.array_equal(found, devices[1].compute(prompt, ["6", 0]))
