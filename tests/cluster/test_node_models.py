"""Models of a cluster's node that has several workers: one folder, and each of them a way to it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.api import BASE
from comfyfleet.client.digests import sha256_of
from comfyfleet.fleet.tokens import write_secret
from tests.cluster.test_cluster_master import copied, write_models
from tests.cluster.test_models_copied import MIB, NAME, decoded, write_vae
from tests.queue_bed.bed import share
from tests.remote_bed.bed import cluster_of_one
from tests.support import Master, run_command, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def master(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """Two workers on one node, which looks for models in another folder than the master."""
    base = tmp_path_factory.mktemp("node_models")
    with cluster_of_one(comfyui, cpu_slots=2) as cluster:
        write_secret(base / "token", cluster.token)
        settings = {
            "COMFYFLEET_CLUSTER": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(base / "token"),
            "COMFYFLEET_MASTER": "0",
        }
        models = base / "models.yaml"
        write_models(models, base / "own")
        (base / "models" / "vae").mkdir(parents=True)
        flags = ["--extra-model-paths-config", str(models)]
        with closing(Master(comfyui, base, workers="0", settings=settings, flags=flags)) as running:
            models.write_text("{}")  # what the node reads, when its workers start
            share(running)
            yield running


def workers(master: Master) -> dict[str, int]:
    """The process of each, once both have come."""

    def found() -> dict[str, int]:
        listed = master.get(f"{BASE}/status")["workers"]
        own = {each["id"]: each["pid"] for each in listed if each["id"] != "master"}
        return own if len(own) == 2 and all(own.values()) else {}

    return dict(wait_until(found, "both workers"))


def look(master: Master) -> dict[str, Any]:
    """What is said of the node, once for all of its workers."""
    workflow = master.base / "workflow.json"
    workflow.write_text(json.dumps(decoded()))
    said = run_command("models", "check", str(workflow), "--url", master.url, "--json")
    assert said.returncode == 0, said.stderr
    here, node = json.loads(said.stdout.splitlines()[-1])["workers"]
    assert (here["worker"], node["worker"]) == ("master", min(workers(master)))
    return dict(node)


def ended(master: Master, *copies: str) -> list[dict[str, Any]]:
    """The copies, once none of them goes on."""

    def found() -> list[dict[str, Any]]:
        listed = master.get(f"{BASE}/models/copies")["copies"]
        own = [each for each in listed if each["id"] in copies]
        done = all(each["state"] in ("done", "failed", "cancelled") for each in own)
        return own if done else []

    return list(wait_until(found, "the copies"))


def test_copies_to_both_at_once_make_one_file(master: Master) -> None:
    """And each of them finds what another has begun."""
    own, there = (master.base / each / "vae" / NAME for each in ("own", "models"))
    write_vae(own)
    first, second = workers(master)
    assert look(master)["missing"] == [0]
    begun = [
        master.post(f"{BASE}/models/copy", {"file": NAME, "worker": each})["id"]
        for each in (first, second)
    ]
    copies = ended(master, *begun)
    assert [(each["state"], each["error"]) for each in copies] == [("done", "")] * 2
    assert there.read_bytes() == own.read_bytes()
    assert [path.name for path in there.parent.iterdir()] == [NAME]
    assert look(master)["missing"] == []
    master.run(decoded())


def test_what_one_worker_has_begun_another_ends(master: Master) -> None:
    """The first one is lost in the middle; what has come by it is the node's."""
    name = "second.safetensors"
    own, there = (master.base / each / "vae" / name for each in ("own", "models"))
    write_vae(own)
    first, second = workers(master)
    part = there.with_name(f"{name}.{sha256_of(own)[:16]}.part")
    part.write_bytes(own.read_bytes()[: 9 * MIB])
    lost = workers(master)[first]
    os.kill(lost, signal.SIGSTOP)
    stopped = master.post(f"{BASE}/models/copy", {"file": name, "worker": first})
    os.kill(lost, signal.SIGKILL)
    assert master.post(f"{BASE}/models/copies/{stopped['id']}/cancel", {})["state"] == "cancelled"
    code, answer = copied(master, name, second)
    assert (code, answer.endswith(f"{name} to {second}: 100%, is there")) == (0, True), answer
    assert there.read_bytes() == own.read_bytes() and not part.exists()
    wait_until(lambda: workers(master)[first] != lost, "the lost one")


def test_a_model_comes_by_any_of_them_and_goes_from_none_to_another(master: Master) -> None:
    """To a worker on the network; here that is the master's own ComfyUI."""
    name = "of the node.sft"
    (master.base / "models" / "vae" / name).write_bytes(b"weights" * 100)
    write_secret(master.folder / "own.token", master.token)
    entry = f"workers:\n- name: own\n  url: {master.url}\n  token_file: own.token\n"
    settings = master.folder / "fleet.yaml"
    settings.write_text(f"settings:\n  accept_models: true\n{entry}")
    first, second = workers(master)
    there = master.base / "own" / "vae" / name
    for each in (first, second):
        there.unlink(missing_ok=True)
        code, answer = copied(master, name, "own", "--from", each)
        assert (code, answer.endswith(f"{name} from {each} to own: 100%, is there")) == (0, True)
        assert there.read_bytes() == b"weights" * 100
    _, answer = copied(master, name, first, "--from", second)
    assert "is to copy from and to: choose two workers" in answer
