"""What is wrong with a worker elsewhere is said in a sentence, with what to do about it.

In the status, by the command that shows it, and in ComfyUI's log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from tests.client.hostile import CLASSES, STATS, Hostile, an_hour_ago, answering, served
from tests.cluster.test_models_copied import NAME, decoded, write_vae
from tests.cluster.test_uploads import full_disk
from tests.queue_bed.bed import PACK, Prompt, fault, save
from tests.remote_bed.said import assert_said
from tests.support import Master, error_of, free_port, wait_until

pytestmark = pytest.mark.cluster

CONFIG = """\
settings:
  share: true
  workers: 0
  master: false
workers:
  - {{name: silent, url: 'http://127.0.0.1:{port}'}}
  - {{name: other, url: '{other}'}}
  - {{name: old, url: '{old}'}}
  - {{name: late, url: '{late}'}}
  - {{name: box, url: '{box}'}}
"""
NOT_USED = {
    "silent": r"no connection \(.*\); is ComfyUI running there, with --listen?",
    "other": r"it answers \(200\), but not as a ComfyUI does; check it",
    "old": r"is ComfyUI 0\.3\.40; 0\.3\.75 is needed: update",
}


@pytest.fixture(scope="module")
def bad() -> list[Hostile]:
    other, old, late = Hostile(), Hostile(), Hostile()
    other.instead["/system_stats"] = answering({"hello": "world"})
    system = {**STATS["system"], "comfyui_version": "0.3.40"}
    old.instead["/system_stats"] = answering({**STATS, "system": system})
    late.instead["/object_info"] = answering({**CLASSES, "TestFault": {}})
    late.instead["/system_stats"] = answering(STATS, Date=an_hour_ago())
    return [other, old, late]


@pytest.fixture(scope="module")
def box(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    running = Master(comfyui, tmp_path_factory.mktemp("box"), workers="0", plain=True)
    yield running
    running.close()


@pytest.fixture(scope="module")
def master(
    bad: list[Hostile],
    box: Master,
    comfyui: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Master]:
    base = tmp_path_factory.mktemp("owner")
    write_vae(base / "models" / "vae" / NAME)
    file = base / "user" / "comfyfleet" / "fleet.yaml"
    file.parent.mkdir(parents=True)
    with served(*bad) as (other, old, late):
        file.write_text(
            CONFIG.format(port=free_port(), other=other, old=old, late=late, box=box.url)
        )
        with closing(Master(comfyui, base, workers="", packs={"queue_bed": PACK})) as running:
            wait_until(lambda: {"box", "late"} <= idle(running), "the workers")
            yield running


def idle(master: Master) -> set[str]:
    return {name for name, state in master.states().items() if state == "idle"}


@pytest.mark.parametrize("name", NOT_USED)
def test_why_a_worker_is_not_used(master: Master, name: str) -> None:
    assert_said(master, NOT_USED[name])


def test_a_clock_that_is_far_off(master: Master) -> None:
    assert_said(master, r"its clock is off by -3\d{3} s; set it, for certificates and logs")


def with_pack() -> Prompt:
    """What needs a pack, and a node that "late" lacks."""
    inverted = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    return fault("nobody") | {"4": inverted, "5": save(["4", 0])}


@pytest.mark.parametrize("lack", ["model", "pack", "disk"])
def test_what_a_worker_lacks_for_a_prompt(master: Master, box: Master, lack: str) -> None:
    """Its client is told too, as nobody else is left to run it."""
    Image.effect_noise((3000, 3000), 90).save(master.base / "input" / "noise.bmp")
    load = {"class_type": "LoadImage", "inputs": {"image": "noise.bmp"}}
    prompt: Prompt = {
        "model": decoded(),
        "pack": with_pack(),
        "disk": {"1": load, "2": save(["1", 0])},
    }[lack]
    said = {
        "model": f"lacks '{NAME}' for VAELoader.vae_name: put such files there",
        "pack": "lacks node class TestFault: install the packs of such nodes there",
        "disk": "answered 500 to an upload of noise.bmp; is its disk full? See its log.",
    }[lack]
    with full_disk(box.process.pid):
        assert said in error_of(master.finish(master.queue(prompt)))
    assert_said(master, re.escape(said))
    wait_until(lambda: "box" in idle(master), "the worker to be idle")


def test_one_that_was_started_anew_is_asked_again_what_it_has(master: Master, box: Master) -> None:
    """It is back before anybody misses it, with a pack that it did not have."""
    (box.base / "custom_nodes" / "queue_bed").symlink_to(PACK)
    box.restart()
    wait_until(lambda: "started anew with other packs" in master.log.read_text(), "word of it", 60)
    wait_until(lambda: "box" in idle(master), "the worker", 60)
    assert master.files(master.run(with_pack()), "5")[0].is_file()
