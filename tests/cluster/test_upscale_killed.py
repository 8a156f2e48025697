"""Work by tiles: what the user sees of it, and a worker that is killed over a tile of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parallel_bed.events import record
from tests.upscale_bed.bed import Bed, Prompt, beds, by_model, film, node, picture, redrawn
from tests.upscale_bed.models import write_models

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def devices(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Mapping[int, Bed]]:
    models = tmp_path_factory.mktemp("models")
    write_models(comfyui, models)
    with beds(comfyui, tmp_path_factory.mktemp("beds"), (1, 2), models) as running:
        for bed in running.values():
            bed.order("delay", "0.1")
        yield running


ESRGAN = node("UpscaleModelLoader", model_name="tiny_esrgan.safetensors")
WATCHED_ESRGAN = {
    "22": ESRGAN,
    "24": node("TestWatchedUpscaler", upscale_model=["22", 0], folder=""),
}
TAESD = node("VAELoader", vae_name="taesd")
WATCHED_TAESD = {"2": TAESD, "3": node("TestWatchedVAE", vae=["2", 0], folder="")}
SMALL = {"vae": ["3", 0], "tile_size": 64, "overlap": 16}


def of_model() -> Prompt:
    given = {"upscale_model": ["24", 0], "image": ["1", 0], "tile": 64}
    return picture(2) | WATCHED_ESRGAN | {"work": node("FleetModelUpscale", **given)}


def of_decode() -> Prompt:
    latent = {"5": node("VAEEncode", pixels=["1", 0], vae=["2", 0])}
    decode = node("FleetVAEDecode", samples=["5", 0], **SMALL)
    return picture(2) | WATCHED_TAESD | latent | {"work": decode}


def of_encode() -> Prompt:
    return picture(2) | WATCHED_TAESD | {"work": node("FleetVAEEncode", pixels=["1", 0], **SMALL)}


def of_upscaled_video() -> Prompt:
    video = film(4, width=160, height=96) | by_model(["21", 0]) | WATCHED_ESRGAN
    video["23"]["inputs"]["upscale_model"] = ["24", 0]
    return video | {"work": node("GetVideoComponents", video=["23", 0])}


def of_redrawn_video() -> Prompt:
    video = redrawn(film(3, width=96, height=64), seed=3)
    return video | {"work": node("GetVideoComponents", video=["6", 0])}


WORK = [of_model, of_decode, of_encode, of_upscaled_video, of_redrawn_video]


@pytest.mark.parametrize("work", WORK)
def test_a_killed_worker_changes_nothing(devices: Mapping[int, Bed], work: Any) -> None:
    alone = devices[1].compute(work(), ["work", 0])
    assert np.isfinite(alone).all() and alone.std() > 1e-3
    bed = devices[2]
    bed.ready()
    assert np.array_equal(bed.compute_losing(work(), ["work", 0], "cpu-0.kill"), alone)
    # One of them in vain.
    assert sum(bed.samplings.values()) == sum(devices[1].samplings.values()) + 1


@pytest.mark.parametrize("work", WORK)
def test_what_has_pictures_shows_them_as_they_grow(devices: Mapping[int, Bed], work: Any) -> None:
    bed = devices[2]
    bed.ready()
    save = {"class_type": "TestDump", "inputs": {"value": ["work", 0], "path": "/dev/null"}}
    prompt = bed.here(work()) | {"1": node("TestPicture", **picture(2, 200, 150)["1"]["inputs"])}
    bed.order("master.slow", "1")  # so that the worker has its part
    try:
        recording = record(bed.master, {**prompt, "save": save})
    finally:
        bed.withdraw("master.slow")
    assert any("this device" in text and "cpu-0" in text for text in recording.texts)
    assert bool(recording.count("preview")) == (work is not of_encode)
