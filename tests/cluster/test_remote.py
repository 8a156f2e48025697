"""What all kinds of workers do alike: of this machine, elsewhere, with this extension or not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from comfyfleet.errors import RunCancelled, RunFailed
from comfyfleet.fleet import Fleet, Host, new_run_id
from comfyfleet.planner import cpu_device
from comfyfleet.work import Mirrored, Unit
from tests.queue_bed.bed import PACK, Gates, assert_in_time, fault, picture, save
from tests.remote_bed import media
from tests.remote_bed.bed import (
    OTHER_PATH,
    Prompt,
    Watched,
    begin,
    cluster_of_one,
    line_to,
    pixels,
    remote,
    results,
    returning,
)
from tests.support import wait_until

pytestmark = pytest.mark.cluster


#: That of a cluster runs in a process of its own: Ray is of one kind for a whole process.
KINDS = os.environ.get("COMFYFLEET_TEST_KINDS", "local plain extension joined").split()


@pytest.fixture(scope="module", params=KINDS)
def fleet(
    request: pytest.FixtureRequest, comfyui: Path, folders: dict[str, Path]
) -> Iterator[Fleet]:
    """A fleet of one worker of this kind."""
    kind: str = request.param
    elsewhere = request.getfixturevalue("elsewhere") if kind not in ("local", "cluster") else {}
    flags = {"local": own_flags(folders), "cluster": own_flags(folders)[:2]}.get(kind, ())
    host = Host(comfyui=comfyui, cwd=Path.cwd(), folders=folders, flags=flags)
    devices = [cpu_device()] if kind == "local" else []
    with ExitStack() as stack:
        remotes, cluster = [], None
        if kind == "joined":
            way = line_to(elsewhere["extension"], folders["temp"])
            remotes = [stack.enter_context(way)]
        elif kind == "cluster":
            cluster = stack.enter_context(cluster_of_one(comfyui))
        elif kind != "local":
            remotes = [remote("box", elsewhere[kind])]
        running = stack.enter_context(Fleet(devices, host, remotes=remotes, cluster=cluster))
        running.kind = kind  # type: ignore[attr-defined]
        yield running


def own_flags(folders: dict[str, Path]) -> tuple[str, ...]:
    """The owner's packs and, for a worker of this machine, the owner's input folder."""
    base = folders["temp"] / "base"
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    if not (base / "custom_nodes" / "queue_bed").exists():
        (base / "custom_nodes" / "queue_bed").symlink_to(PACK)
    return ("--base-directory", str(base), "--input-directory", str(folders["input"]))


@pytest.mark.skipif("cluster" in KINDS, reason="this is that process")
@pytest.mark.timeout(900)  # it is this whole file once more
def test_nodes_of_a_cluster_do_all_of_this_too(nothing_left: None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "COMFYFLEET_TEST_KINDS": "cluster"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:]


@pytest.mark.skipif(OTHER_PATH not in os.environ, reason=f"{OTHER_PATH} names no other ComfyUI")
def test_a_plain_one_may_be_of_another_version(fleet: Fleet, comfyui: Path) -> None:
    """Then all that follows holds for it: a current one beside 0.3.75, or the other way round."""
    if fleet.kind == "plain":  # type: ignore[attr-defined]
        (worker,) = fleet.workers
        own = (comfyui / "comfyui_version.py").read_text()
        assert worker.comfyui_version and f'"{worker.comfyui_version}"' not in own


def test_pictures_come_back_as_values(fleet: Fleet) -> None:
    made = [returning(picture(color, 32), ["1", 0]) for color in (0x000000, 0x0000FF, 0x123456)]
    for result, blue in zip(results(begin(fleet, *made)), (0x00, 0xFF, 0x56), strict=True):
        image = pixels(result)
        assert image.shape == (1, 32, 32, 3) and image.dtype == np.float32
        assert set(image[..., 2].reshape(-1)) == {np.float32(blue / 255)}


def test_a_batch_stays_a_batch(fleet: Fleet) -> None:
    prompt = picture(7, 16)
    prompt["1"]["inputs"]["batch_size"] = 5
    (result,) = results(begin(fleet, returning(prompt, ["1", 0])))
    assert pixels(result).shape == (5, 16, 16, 3)


def test_saved_files_come_home(fleet: Fleet) -> None:
    prompt = picture(3) | {"3": save(["1", 0], "deep/er")}
    for _ in range(2):  # cached there the second time
        (result,) = results(begin(fleet, prompt))
        (file,) = result.files
        assert file.node_id == "3" and file.name.startswith("deep/er_")
        assert file.data.startswith(b"\x89PNG")


def test_values_of_ours_need_no_extension(fleet: Fleet) -> None:
    """Seeds and values are literals once a share knows them."""
    prompt = returning(picture(0, 16), ["1", 0])
    prompt["seed"] = {"class_type": "FleetSeed", "inputs": {"seed": 255}}
    prompt["value"] = {"class_type": "FleetValue", "inputs": {"values": "48", "type": "INT"}}
    prompt["1"]["inputs"] |= {"color": ["seed", 0], "width": ["value", 0]}
    (result,) = results(begin(fleet, prompt))
    assert pixels(result).shape == (1, 16, 48, 3) and pixels(result)[0, 0, 0, 2] == 1.0


def test_a_failure_names_node_and_cause(fleet: Fleet) -> None:
    with pytest.raises(RunFailed, match=r"node 2 \(TestFault\): ValueError: broken"):
        begin(fleet, fault("all")).wait(120)


def test_out_of_memory_is_known_as_such(fleet: Fleet) -> None:
    with pytest.raises(RunFailed, match="ran out of memory"):
        begin(fleet, fault("all", "memory")).wait(120)


def test_a_cancelled_run_stops_there(fleet: Fleet, gates: Gates) -> None:
    """The node that runs there is asked to stop."""
    prompt = gates.prompt("held")

    def cancel() -> float:
        gates.begin_anew()
        run = begin(fleet, prompt)
        gates.wait("held")
        began = time.monotonic()
        run.cancel("no more")
        with pytest.raises(RunCancelled):
            run.wait(120)
        (left,) = gates.left("held")
        return left - began

    assert_in_time(cancel)
    (again,) = results(begin(fleet, returning(picture(1, 16), ["1", 0])))  # it is free again
    assert again.values is not None


def test_input_files_are_sent_wherever_they_are_named(
    fleet: Fleet, folders: dict[str, Path]
) -> None:
    (folders["input"] / "sub").mkdir(exist_ok=True)
    Image.new("RGB", (24, 16), (255, 0, 0)).save(folders["input"] / "sub" / "red one.png")
    Image.new("RGB", (24, 16), (0, 0, 255)).save(folders["output"] / "blue.png")
    names = ["sub/red one.png"]
    if fleet.kind != "local":  # type: ignore[attr-defined]  # it saves into a folder of its own
        names.append("blue.png [output]")
    for name in names:
        load = {"class_type": "LoadImage", "inputs": {"image": name}}
        for _ in range(2):
            (result,) = results(begin(fleet, returning({"1": load}, ["1", 0])))
            assert list(pixels(result)[0, 0, 0]) == ([1, 0, 0] if "red" in name else [0, 0, 1])


def test_a_mask_is_sent(fleet: Fleet, folders: dict[str, Path]) -> None:
    media.write_picture(folders["input"] / "mask.png", (0, 255, 51))
    load = {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "blue"}}
    shown = {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}}
    (result,) = results(begin(fleet, returning({"1": load, "2": shown}, ["2", 0])))
    assert np.allclose(pixels(result), 0.2, atol=1e-6)


def test_a_list_of_files_is_sent(fleet: Fleet, folders: dict[str, Path]) -> None:
    """As packs have them; ComfyUI takes a bare list of two for a link."""
    names = ["one.png", "two of it.png"]
    for name, color in zip(names, ((255, 0, 0), (0, 0, 255)), strict=True):
        media.write_picture(folders["input"] / name, color)
    load = {"class_type": "TestLoadAll", "inputs": {"images": {"__value__": names}}}
    (result,) = results(begin(fleet, returning({"1": load}, ["1", 0])))
    assert [list(each[0, 0]) for each in pixels(result)] == [[1, 0, 0], [0, 0, 1]]


def test_a_video_is_sent(fleet: Fleet, folders: dict[str, Path]) -> None:
    media.write_video(folders["input"] / "clip.mp4", [0, 128, 255])
    load = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
    frames = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
    (result,) = results(begin(fleet, returning({"1": load, "2": frames}, ["2", 0])))
    assert pixels(result).shape == (3, 48, 64, 3)
    assert np.allclose(pixels(result).mean((1, 2, 3)), [0, 0.5, 1], atol=0.05)


def test_sound_is_sent_and_comes_home(
    fleet: Fleet, folders: dict[str, Path], tmp_path: Path
) -> None:
    samples = media.tone(0.5)
    media.write_sound(folders["input"] / "tone.wav", samples)
    load = {"class_type": "LoadAudio", "inputs": {"audio": "tone.wav"}}
    named = {"audio": ["1", 0], "filename_prefix": "tone"}
    (result,) = results(
        begin(fleet, {"1": load, "2": {"class_type": "SaveAudio", "inputs": named}})
    )
    (file,) = result.files
    (tmp_path / "home.flac").write_bytes(file.data)
    heard = media.read_sound(tmp_path / "home.flac")
    assert np.allclose(heard[: len(samples)], samples / 32768, atol=1e-3)


def test_a_latent_is_sent_and_comes_home(fleet: Fleet, folders: dict[str, Path]) -> None:
    samples = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    media.write_latent(folders["input"] / "drawn.latent", samples)
    load = {"class_type": "LoadLatent", "inputs": {"latent": "drawn.latent"}}
    named = {"samples": ["1", 0], "filename_prefix": "drawn"}
    (result,) = results(
        begin(fleet, {"1": load, "2": {"class_type": "SaveLatent", "inputs": named}})
    )
    (file,) = result.files
    assert torch.equal(load_tensors(file.data)["latent_tensor"], samples)


def test_a_missing_class_is_said_before_anything_runs(fleet: Fleet) -> None:
    prompt = picture(1) | {"2": {"class_type": "NoSuchNode", "inputs": {"image": ["1", 0]}}}
    with pytest.raises(RunFailed, match=r"lacks node class NoSuchNode|\(NoSuchNode\): this Comf"):
        begin(fleet, prompt | {"3": save(["2", 0])}).wait(120)


def test_a_missing_model_is_named(fleet: Fleet) -> None:
    load = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "none.safetensors"}}
    decode = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}}
    empty = {"width": 64, "height": 64, "batch_size": 1}
    latent = {"class_type": "EmptyLatentImage", "inputs": empty}
    prompt = {"1": load, "4": latent, "2": decode, "3": save(["2", 0])}
    with pytest.raises(RunFailed, match=r"none.safetensors' (for|not in)"):
        begin(fleet, prompt).wait(120)


def test_progress_is_told(fleet: Fleet) -> None:
    watched = Watched()
    results(begin(fleet, picture(9) | {"3": save(["1", 0])}, watched=watched))
    assert watched.of("progress")


def test_a_whole_prompt_of_a_client_is_mirrored(fleet: Fleet) -> None:
    """With its events, its files and its history."""
    prompt = picture(5) | {"3": save(["1", 0], "mirrored")}
    asked = Mirrored(
        prompt_id=str(uuid.uuid4()),
        extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}},
        outputs=("3",),
        features={},
    )
    unit = Unit(run_id=new_run_id(), index=0, prompt=prompt, mirrored=asked)
    watched = Watched()
    results(fleet.submit([unit], watched))
    told = [event.told for event in watched.of("told") if event.told is not None]
    names = [each.event for each in told]
    assert names[0] == "execution_start" and names[-1] == "comfyfleet_history"
    (saved,) = [file for each in told for file in each.files]
    assert saved.name.startswith("mirrored_") and b'{"nodes": []}' in (saved.data or b"")
    assert told[-1].data["status"]["status_str"] == "success"


def test_memory_of_a_gpu_elsewhere_is_known(fleet: Fleet) -> None:
    """As soon as it has answered in time."""

    def known() -> bool:
        memory = fleet.snapshot().workers[0].memory
        return memory is not None and bool(memory.device_total_bytes)

    wait_until(known, "its memory")


def test_the_log_on_a_node_of_a_cluster_can_be_read(fleet: Fleet) -> None:
    (worker,) = fleet.workers
    found = fleet.care.log_elsewhere(worker.id, 1000)
    if fleet.kind == "cluster":  # type: ignore[attr-defined]
        assert found and f"--- worker {worker.id}" in found[0]
    else:
        assert found is None, "it is a file of this machine"


def test_latents_need_the_extension(fleet: Fleet) -> None:
    empty = {"width": 64, "height": 64, "batch_size": 1}
    latent: Prompt = {"1": {"class_type": "EmptyLatentImage", "inputs": empty}}
    run = begin(fleet, returning(latent, ["1", 0], "value"))
    if fleet.kind == "plain":  # type: ignore[attr-defined]
        with pytest.raises(RunFailed, match="this extension, for 'value' of type LATENT"):
            run.wait(120)
        return
    (result,) = results(run)
    assert result.values is not None
    assert result.values.skeleton["value"][0]["samples"].shape == (1, 4, 8, 8)
