"""A ComfyUI whose queue is shared with a node of a cluster: files go there, its log comes.

What is wrong with the node is said in the status, by the command that shows it, and in the log.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyfleet.api import BASE
from comfyfleet.client.digests import sha256_of
from comfyfleet.fleet.tokens import write_secret
from tests.cluster.test_models_copied import MIB, NAME, decoded, write_vae
from tests.cluster.test_uploads import full_disk
from tests.queue_bed.bed import save, share
from tests.remote_bed.bed import LATE, cluster_of_one, node_of
from tests.remote_bed.said import assert_said
from tests.support import Master, error_of, run_command, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def master(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """The node's clock is an hour late, it lacks a model, and another node has no ComfyUI."""
    base, nowhere = (tmp_path_factory.mktemp(name) for name in ("cluster_master", "nowhere"))
    with cluster_of_one(comfyui, **LATE) as cluster, node_of(cluster, "127.0.0.2", nowhere):
        write_secret(base / "token", cluster.token)
        settings = {
            "COMFYFLEET_CLUSTER": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(base / "token"),
        }
        models = base / "models.yaml"
        write_models(models, base / "own")
        (base / "models" / "vae").mkdir(parents=True)  # the node's
        flags = ["--extra-model-paths-config", str(models)]
        made = Master(comfyui, base, workers="0", settings=settings, flags=flags)
        with closing(made) as running:
            models.write_text("{}")  # what the node reads, when its worker starts
            share(running)
            yield running


def write_models(file: Path, folder: Path) -> None:
    """A folder of models, as ComfyUI is told of it."""
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / NAME).touch()
    file.write_text(f"own:\n  base_path: {folder}\n  is_default: true\n  vae: vae\n")


def node(master: Master) -> dict[str, Any]:
    """The worker there, once it has come."""

    def found() -> list[dict[str, Any]]:
        workers = master.get(f"{BASE}/status")["workers"]
        return [each for each in workers if each["id"] != "master" and each["pid"]]

    (worker,) = wait_until(found, "the worker")
    return dict(worker)


def loaded(picture: Path, prefix: str) -> dict[str, Any]:
    load = {"class_type": "LoadImage", "inputs": {"image": picture.name}}
    return {"1": load, "2": save(["1", 0], prefix)}


def test_a_prompt_with_a_picture_runs_on_the_node_whose_log_is_shown(master: Master) -> None:
    picture = master.base / "input" / "red.png"
    Image.new("RGB", (16, 16), (255, 0, 0)).save(picture)
    master.run(loaded(picture, "from_node"))
    assert list((master.base / "output").glob("from_node*.png"))
    assert list((master.base / "input" / "comfyfleet").glob("*.png")), "it went by its content"
    worker = node(master)
    said = run_command("logs", worker["id"], "--lines", "1000", "--url", master.url)
    assert said.returncode == 0, said.stderr
    assert f"--- worker {worker['id']}" in said.stdout and "got prompt" in said.stdout
    said = run_command("logs", worker["id"], "--follow", "--url", master.url)
    assert said.returncode == 2 and "leave --follow out" in " ".join(said.stderr.split())


def test_a_clock_that_is_far_off(master: Master) -> None:
    node(master)
    assert_said(master, r"its clock is off by -3\d{3} s; set it, for certificates and logs")


def test_a_node_that_is_left_out(master: Master) -> None:
    node(master)
    assert_said(master, r"127\.0\.0\.2.* is left out: .*nowhere.* is no ComfyUI")


@pytest.mark.parametrize("lack", ["model", "disk"])
def test_what_it_lacks_for_a_prompt(master: Master, lack: str) -> None:
    picture = master.base / "input" / "noise.bmp"
    Image.effect_noise((3000, 3000), 90).save(picture)
    prompt = {"model": decoded(), "disk": loaded(picture, "large")}[lack]
    said = {
        "model": f"lacks '{NAME}' for VAELoader.vae_name: put such files there",
        "disk": r"an input file cannot be kept in .*comfyfleet: .*\. Look at rights, and at room",
    }[lack]
    with full_disk(node(master)["pid"]):
        assert re.search(said, error_of(master.finish(master.queue(prompt))))
    assert_said(master, said)
    wait_until(lambda: master.states()[node(master)["id"]] == "idle", "the worker to be idle")


# From here on the node gets models; the master looks into a folder of its own first.


def copied(master: Master, name: str, to: str, *options: str) -> tuple[int, str]:
    """Status of the command that copies a model, and what it says."""
    said = run_command("models", "copy", name, "--to", to, *options, "--url", master.url)
    return said.returncode, " ".join((said.stdout + said.stderr).split())


def checked(master: Master) -> tuple[list[int], list[int], bool]:
    """What the node lacks for a picture, what differs there, and whether it accepts models."""
    workflow = master.base / "workflow.json"
    workflow.write_text(json.dumps(decoded()))
    said = run_command("models", "check", str(workflow), "--url", master.url, "--json")
    here, there = json.loads(said.stdout.splitlines()[-1])["workers"]
    assert (here["worker"], there["worker"]) == ("master", node(master)["id"])
    assert (here["missing"], there["error"]) == ([], "")
    return there["missing"], there["differ"], there["accepts"]


NOT_TAKEN = {
    "a pickle": ("x.ckpt", "other formats can hold code"),
    "a device of Windows": ("aux.sft", "is no name of a file on every system"),
    "other content": ("other.sft", "is there already, with other content"),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_the_node_does_not_take(master: Master, case: str) -> None:
    name, said = NOT_TAKEN[case]
    there = master.base / "models" / "vae"
    (there / "other.sft").write_bytes(b"a model")
    (master.base / "own" / "vae" / name).write_bytes(b"another")
    code, answer = copied(master, name, node(master)["id"])
    assert (code != 0, said in answer) == (True, True), answer
    assert [each.name for each in there.iterdir()] == ["other.sft"]
    assert (there / "other.sft").read_bytes() == b"a model"


def test_a_model_goes_to_the_node_although_its_worker_is_lost_meanwhile(master: Master) -> None:
    own, there = (master.base / each / "vae" / NAME for each in ("own", "models"))
    write_vae(own)
    assert checked(master) == ([0], [], True)
    part = there.with_name(f"{NAME}.{sha256_of(own)[:16]}.part")
    part.write_bytes(bytes(9 * MIB))
    worker = node(master)
    code, answer = copied(master, NAME, worker["id"])
    assert (code, "arrived damaged" in answer, part.exists()) == (3, True, False), answer
    part.write_bytes(own.read_bytes()[: 9 * MIB])
    os.kill(worker["pid"], signal.SIGSTOP)
    copy = master.post(f"{BASE}/models/copy", {"file": NAME, "worker": worker["id"]})
    assert (copy["total"], copy["state"]) == (own.stat().st_size, "waiting")
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: node(master)["pid"] != worker["pid"], "the next worker", 120)
    code, answer = copied(master, NAME, worker["id"])
    assert (code, answer.endswith(f"{NAME} to {worker['id']}: 100%, is there")) == (0, True), answer
    assert there.read_bytes() == own.read_bytes()
    assert checked(master) == ([], [], True)
    master.run(decoded())


def test_a_model_comes_from_the_node(master: Master) -> None:
    """To a worker on the network; here that is the master's own ComfyUI."""
    name, worker = "of the node.sft", node(master)["id"]
    (master.base / "models" / "vae" / name).write_bytes(b"weights" * 100)
    write_secret(master.folder / "own.token", master.token)
    entry = f"workers:\n- name: own\n  url: {master.url}\n  token_file: own.token\n"
    settings = master.folder / "fleet.yaml"
    settings.write_text(f"settings:\n  accept_models: true\n{entry}")
    try:
        code, answer = copied(master, name, "own", "--from", worker)
    finally:
        settings.unlink()
    assert (code, answer.endswith(f"{name} from {worker} to own: 100%, is there")) == (0, True)
    assert (master.base / "own" / "vae" / name).read_bytes() == b"weights" * 100
    code, answer = copied(master, name, worker, "--from", worker)
    assert "is to copy from and to: choose two workers" in answer
