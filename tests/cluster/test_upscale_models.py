"""Upscale models, VAEs, ControlNets and videos: one device and two make the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.support import Master, error_of
from tests.upscale_bed.bed import (
    Bed,
    Prompt,
    beds,
    by_model,
    demo,
    film,
    node,
    picture,
    redrawn,
    text,
)
from tests.upscale_bed.models import write_models

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def devices(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Mapping[int, Bed]]:
    models = tmp_path_factory.mktemp("models")
    write_models(comfyui, models, "checkpoint")
    with beds(comfyui, tmp_path_factory.mktemp("beds"), (1, 2), models) as running:
        running[2].ready()
        yield running


def controlled(**upscale: Any) -> Prompt:
    """A picture redrawn by a tiny SD 1.5 under a ControlNet, of stock loaders."""
    prompt = demo(width=96, height=96, cfg=3.0, denoise=0.8, **upscale)
    prompt["2"] = node("UNETLoader", unet_name="tiny_sd.safetensors", weight_dtype="default")
    prompt["4"] = node("TestConditioning", width=768, seed=1)
    prompt["5"] = node("TestConditioning", width=768, seed=2)
    prompt["7"] = node("VAELoader", vae_name="taesd")
    prompt["8"] = node("ControlNetLoader", control_net_name="tiny_control.safetensors")
    hint = {"image": ["1", 0], "control_net": ["8", 0], "vae": ["7", 0]}
    both = {"positive": ["4", 0], "negative": ["5", 0]}
    span = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    prompt["9"] = node("ControlNetApplyAdvanced", **both, **hint, **span)
    prompt["6"]["inputs"] |= {"vae": ["7", 0], "positive": ["9", 0], "negative": ["9", 1]}
    return prompt


@pytest.mark.parametrize("how", [{}, {"batch_size": 2, "mode_type": "Chess"}, {"count": 2}])
def test_a_controlnet_sees_its_part_of_the_hint(
    devices: Mapping[int, Bed], how: dict[str, Any]
) -> None:
    one, two = (devices[count].compute(controlled(**how), ["6", 0]) for count in (1, 2))
    assert np.isfinite(one).all() and np.array_equal(one, two)
    free = controlled(**how)
    free["6"]["inputs"] |= {"positive": ["4", 0], "negative": ["5", 0]}
    assert not np.array_equal(devices[1].compute(free, ["6", 0]), one)


def test_a_whole_checkpoint_with_its_text_encoder(devices: Mapping[int, Bed]) -> None:
    """As most workflows are: one stock loader for MODEL, CLIP and VAE, and a ControlNet."""
    prompt = controlled(seed=32, blend="independent")
    prompt["2"] = node("CheckpointLoaderSimple", ckpt_name="tiny_sd.safetensors")
    prompt["4"], prompt["5"] = text("a red circle"), text("blurry")
    prompt["6"]["inputs"]["vae"] = prompt["9"]["inputs"]["vae"] = ["2", 2]
    one = devices[1].compute(prompt, ["6", 0])
    with devices[2].meeting("master", "cpu-0"):
        two = devices[2].compute(prompt, ["6", 0])
    assert np.isfinite(one).all() and one.std() > 0.01 and np.array_equal(one, two)
    prompt["4"] = text("a blue square")
    assert not np.array_equal(devices[1].compute(prompt, ["6", 0]), one)


def test_the_worker_samples_with_its_own_controlnet(devices: Mapping[int, Bed]) -> None:
    with devices[2].meeting("master", "cpu-0"):
        devices[2].compute(controlled(seed=31, blend="independent"), ["6", 0])
    assert devices[2].samplings.keys() == {"master", "cpu-0"}


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_upscales_as_in_comfyui(devices: Mapping[int, Bed], count: int) -> None:
    prompt = picture(count, width=300, height=210)
    prompt["2"] = node("UpscaleModelLoader", model_name="tiny_esrgan.safetensors")
    given = {"upscale_model": ["2", 0], "image": ["1", 0]}
    prompt["3"] = node("ImageUpscaleWithModel", **given)
    prompt["4"] = node("FleetModelUpscale", **given)
    prompt["5"] = node("FleetModelUpscale", **given, tile=128, distribution="static")
    stock = devices[1].compute(prompt, ["3", 0])
    assert stock.shape == (count, 420, 600, 3)
    for bed in devices.values():
        assert np.array_equal(bed.compute(prompt, ["4", 0]), stock)
    small = [bed.compute(prompt, ["5", 0]) for bed in devices.values()]
    assert np.array_equal(*small) and small[0].shape == stock.shape


def test_an_upscale_model_before_the_tiles(devices: Mapping[int, Bed]) -> None:
    prompt = demo(upscale_model=["9", 0], channels=4)
    prompt["9"] = node("UpscaleModelLoader", model_name="tiny_esrgan.safetensors")
    one, two = (devices[count].compute(prompt, ["6", 0]) for count in (1, 2))
    assert np.array_equal(one, two) and one.shape == (1, 160, 192, 4)


VAES = {
    "demo": (node("FleetDemoModel"), 2, 1),
    "taesd": (node("VAELoader", vae_name="taesd"), 0, 2),
    "wan": (node("VAELoader", vae_name="tiny_wan.safetensors"), 0, 9),
}


@pytest.mark.parametrize("name", VAES)
def test_vae_tiles_are_comfyuis_own(devices: Mapping[int, Bed], name: str) -> None:
    loader, slot, count = VAES[name]
    vae = ["2", slot]
    prompt = picture(count) | {"2": loader}
    size = {"tile_size": 128, "overlap": 32}
    time = {"temporal_size": 4096, "temporal_overlap": 8}
    prompt["3"] = node("VAEEncodeTiled", pixels=["1", 0], vae=vae, **size, **time)
    prompt["4"] = node("FleetVAEEncode", pixels=["1", 0], vae=vae, **size)
    prompt["5"] = node("VAEDecodeTiled", samples=["3", 0], vae=vae, **size, **time)
    prompt["6"] = node("FleetVAEDecode", samples=["3", 0], vae=vae, **size, distribution="static")
    for stock, ours in ((["3", 0], ["4", 0]), (["5", 0], ["6", 0])):
        expected = devices[1].compute(prompt, stock)
        assert np.isfinite(expected).all() and expected.std() > 1e-3
        one, two = (bed.compute(prompt, ours) for bed in devices.values())
        assert np.array_equal(one, two) and one.shape == expected.shape
        assert abs(one - expected).max() <= 1e-5 * max(1.0, abs(expected).max())


def test_an_exact_vae_is_the_undivided_one(devices: Mapping[int, Bed]) -> None:
    prompt = picture() | {"2": VAES["demo"][0]}
    prompt["3"] = node("VAEEncode", pixels=["1", 0], vae=["2", 2])
    prompt["4"] = node("VAEDecode", samples=["3", 0], vae=["2", 2])
    how = {"vae": ["2", 2], "tile_size": 128, "overlap": 32, "mode": "exact"}
    prompt["5"] = node("FleetVAEEncode", pixels=["1", 0], **how)
    prompt["6"] = node("FleetVAEDecode", samples=["3", 0], **how)
    for stock, ours in ((["3", 0], ["5", 0]), (["4", 0], ["6", 0])):
        expected = devices[1].compute(prompt, stock)
        for bed in devices.values():
            found = bed.compute(prompt, ours)
            assert found.shape == expected.shape
            assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


BAD_VAE = [
    ("FleetVAEDecode", {"samples": ["3", 0]}, {}, "samples has 4 channels, but the VAE takes 16"),
    (
        "FleetVAEDecode",
        {"samples": ["6", 0]},
        {},
        "samples is a latent of pictures, but this is a VAE of videos",
    ),
    ("FleetVAEEncode", {"pixels": ["1", 0]}, {"overlap": 64}, "overlap is 64; give 0 to 32"),
    (
        "FleetVAEEncode",
        {"pixels": ["7", 0]},
        {"mode": "exact"},
        "pixels is 4 x 4; the VAE needs 8 x 8 or more",
    ),
]


@pytest.mark.parametrize(("cls", "links", "size", "said"), BAD_VAE)
def test_a_vae_that_does_not_fit_is_named(
    devices: Mapping[int, Bed], cls: str, links: dict[str, Any], size: dict[str, Any], said: str
) -> None:
    prompt = picture() | {"2": node("VAELoader", vae_name="tiny_wan.safetensors")}
    prompt["3"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    prompt["6"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    prompt["7"] = node("EmptyImage", width=4, height=4, batch_size=1, color=0)
    prompt["4"] = node(cls, vae=["2", 0], **links, **{"tile_size": 128, "overlap": 0, **size})
    prompt["5"] = node("TestDump", value=["4", 0], path="/dev/null")
    entry = devices[2].master.finish(devices[2].master.queue(prompt))
    assert said in error_of(entry) and f"node 4 ({cls})" in error_of(entry)


def test_a_vae_of_another_model_is_named(devices: Mapping[int, Bed]) -> None:
    prompt = demo(vae=["7", 0]) | {"7": node("VAELoader", vae_name="tiny_wan.safetensors")}
    prompt["8"] = node("TestDump", value=["6", 0], path="/dev/null")
    bed = devices[2]
    entry = bed.master.finish(bed.master.queue(bed.here(prompt)))
    assert "the VAE makes latents of 16 channels, but the model takes 4" in error_of(entry)


def saved(prompt: Prompt, link: list[Any]) -> Prompt:
    inputs = {"filename_prefix": "film", "format": "auto", "codec": "auto"}
    return prompt | {"30": node("SaveVideo", video=link, **inputs)}


def frames(master: Master, entry: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """All frames of what was saved, and seconds of sound."""
    (path,) = master.files(entry, "30")
    with av.open(str(path)) as file:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with av.open(str(path)) as file:
        sound = [frame for frame in file.decode(audio=0)] if file.streams.audio else []
    return pictures, sum(frame.samples / frame.sample_rate for frame in sound)


def test_a_video_is_upscaled_frame_by_frame_with_its_sound(devices: Mapping[int, Bed]) -> None:
    prompt = saved(film(7, width=96, height=64) | by_model(["21", 0]), ["23", 0])
    found = [frames(bed.master, bed.master.run(prompt)) for bed in devices.values()]
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][0].shape == (7, 128, 192, 3)
    assert all(abs(seconds - 0.7) < 0.05 for _, seconds in found)


def test_a_video_file_keeps_its_sound_as_it_is(devices: Mapping[int, Bed]) -> None:
    bed = devices[2]
    entry = bed.master.run(saved(film(12, width=64, height=48), ["21", 0]))
    (path,) = bed.master.files(entry, "30")
    (bed.master.base / "input").mkdir(exist_ok=True)
    (bed.master.base / "input" / "film.mp4").write_bytes(path.read_bytes())
    prompt = {"21": node("LoadVideo", file="film.mp4")} | by_model(["21", 0], upscale_by=1.5)
    entry = bed.master.run(saved(prompt, ["23", 0]))
    pictures, seconds = frames(bed.master, entry)
    assert pictures.shape == (12, 72, 96, 3) and abs(seconds - 1.2) < 0.05

    def packets(file: Path) -> list[bytes]:
        with av.open(str(file)) as opened:
            return [bytes(packet) for packet in opened.demux(audio=0) if packet.size]

    assert packets(bed.master.files(entry, "30")[0]) == packets(path)


def test_a_video_is_redrawn_by_tiles(devices: Mapping[int, Bed]) -> None:
    prompt = redrawn(film(3, sound=False, width=64, height=48))
    found = []
    for bed in devices.values():
        found.append(frames(bed.master, bed.master.run(saved(bed.here(prompt), ["6", 0])))[0])
    assert np.array_equal(found[0], found[1]) and found[0].shape == (3, 96, 128, 3)


def test_a_video_without_frames_is_named(devices: Mapping[int, Bed]) -> None:
    prompt = saved(film(0) | by_model(["21", 0]), ["23", 0])
    entry = devices[1].master.finish(devices[1].master.queue(prompt))
    assert "video has no frames" in error_of(entry)
