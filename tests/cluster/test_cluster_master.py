"""A ComfyUI whose queue is shared with a node of a cluster: input files go there, its log comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from comfyfleet.fleet.tokens import write_secret
from tests.queue_bed.bed import save, share
from tests.remote_bed.bed import cluster_of_one
from tests.support import Master, run_command, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def master(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    base = tmp_path_factory.mktemp("cluster_master")
    with cluster_of_one(comfyui) as cluster:
        write_secret(base / "token", cluster.token)
        settings = {
            "COMFYFLEET_CLUSTER": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(base / "token"),
        }
        running = Master(comfyui, base, workers="0", settings=settings)
        yield running
        running.close()


def test_a_prompt_with_a_picture_runs_on_the_node_whose_log_is_shown(master: Master) -> None:
    share(master)
    Image.new("RGB", (16, 16), (255, 0, 0)).save(master.base / "input" / "red.png")
    load = {"class_type": "LoadImage", "inputs": {"image": "red.png"}}
    prompt = {"1": load, "2": save(["1", 0], "from_node")}
    prompt_id = master.post("/prompt", {"prompt": prompt})["prompt_id"]
    entry = wait_until(lambda: master.get("/history").get(prompt_id), "the prompt", 120)
    assert entry["status"]["status_str"] == "success", entry
    assert list((master.base / "output").glob("from_node*.png"))
    assert list((master.base / "input" / "comfyfleet").glob("*.png")), "it went by its content"
    (worker,) = [e for e in master.get("/comfyfleet/v1/status")["workers"] if e["id"] != "master"]
    said = run_command("logs", worker["id"], "--lines", "1000", "--url", master.url)
    assert said.returncode == 0, said.stderr
    assert f"--- worker {worker['id']}" in said.stdout and "got prompt" in said.stdout
    said = run_command("logs", worker["id"], "--follow", "--url", master.url)
    assert said.returncode == 2 and "leave --follow out" in " ".join(said.stderr.split())
