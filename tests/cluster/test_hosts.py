"""Two hosts in network namespaces as a Ray cluster: real workers, slow and cut links, bad nodes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.hosts import TwoHosts, cluster_of_two, compare, prompt_of
from benchmarks.link import DEVICE
from benchmarks.namespaces import why_not
from comfyfleet.config import find_comfyui
from comfyfleet.fleet.ray_node import CPU_SLOT
from tests.support import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no hosts here: {why_not()}"),
]

#: Seconds for a run that has to start its workers, on a busy machine.
RUN_S = 150.0
SOURCES = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="module")
def hosts(nothing_left: None) -> Iterator[TwoHosts]:
    """At its end it raises if a process is left on one of the hosts."""
    with cluster_of_two() as running:
        namespaces = [host.namespace for host in running.network.hosts]
        yield running
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert not [name for name in namespaces if name in there.stdout]


@pytest.fixture(autouse=True)
def _whole(hosts: TwoHosts) -> Iterator[None]:
    """Each test finds, and leaves, a fast link that is whole."""
    yield
    hosts.network.heal()
    hosts.network.shape(delay_s=0, megabits_per_s=0)


def workers_of(hosts: TwoHosts) -> list[psutil.Process]:
    """The processes of workers on both hosts."""
    found = [each for host in hosts.network.hosts for each in host.processes()]
    return [each for each in found if each.is_running() and "NodeWorker" in _title(each)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_units_run_on_both_hosts_and_their_files_come_home(hosts: TwoHosts) -> None:
    job = hosts.run(prompt_of(pause_s=0.5), "--count", "6")
    assert job.process.wait(RUN_S) == 0, job.log.read_text()
    found = compare(job, 6)
    assert (found["lost"], found["duplicated"]) == (0, 0)
    names = {f"{host.address}-cpu0" for host in hosts.network.hosts}
    assert set(found["by_worker"]) == names


def test_a_slow_link_costs_time_only(hosts: TwoHosts) -> None:
    hosts.network.shape(delay_s=0.05, megabits_per_s=100)
    job = hosts.run(prompt_of(pause_s=0.5), "--count", "6")
    assert job.process.wait(RUN_S) == 0, job.log.read_text()
    found = compare(job, 6)
    assert (found["lost"], found["duplicated"]) == (0, 0) and len(found["by_worker"]) == 2


def test_a_link_that_is_cut_and_healed_loses_nothing(hosts: TwoHosts) -> None:
    job = hosts.run(prompt_of(pause_s=0.8), "--count", "24")
    wait_until(lambda: len({worker for _, worker in job.done()}) == 2, "both workers", RUN_S)
    hosts.network.cut()
    time.sleep(10)  # what is tested
    hosts.network.heal()
    assert job.process.wait(RUN_S) == 0, job.log.read_text()
    found = compare(job, 24)
    assert (found["lost"], found["duplicated"]) == (0, 0)


def test_a_master_that_is_killed_leaves_no_worker_and_a_whole_cluster(hosts: TwoHosts) -> None:
    job = hosts.run(prompt_of(pause_s=600), "--count", "2")
    wait_until(lambda: len(workers_of(hosts)) == 2, "both workers", RUN_S)
    job.process.kill()
    wait_until(lambda: not workers_of(hosts), "the workers to end", 60)
    job.process.wait(60)
    assert all(process.poll() is None for process in hosts.nodes), "head and node go on"


def test_a_wrong_token_is_refused(hosts: TwoHosts, tmp_path: Path) -> None:
    text = failure(hosts, tmp_path, ["run", *workflow(tmp_path, hosts)], RAY_AUTH_TOKEN="0" * 64)
    assert "InvalidAuthToken" in text
    command = ["join", hosts.head.address, "--cpu-slots", "1", "--gpus", "0"]
    assert "InvalidAuthToken" in failure(hosts, tmp_path, command, RAY_AUTH_TOKEN="0" * 64)


def test_a_cluster_without_a_token_is_refused(hosts: TwoHosts, tmp_path: Path) -> None:
    options = ["--head", "--port=6500", f"--node-ip-address={hosts.node.address}"]
    process = ray_start(hosts, tmp_path / "open", *options, RAY_AUTH_MODE="disabled")
    address = f"{hosts.node.address}:6500"
    try:
        command = ["run", *workflow(tmp_path, hosts)]
        command[command.index("--cluster") + 1] = address
        assert f"the cluster at {address} asks for no token" in failure(hosts, tmp_path, command)
        command = ["join", address, "--cpu-slots", "1", "--gpus", "0"]
        assert f"the cluster at {address} asks for no token" in failure(hosts, tmp_path, command)
    finally:
        process.terminate()
        process.wait(60)


def test_nodes_that_are_not_fit_are_left_out_and_the_others_work(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(SOURCES / "comfyfleet", other / "comfyfleet")
    with (other / "comfyfleet" / "errors.py").open("a") as file:
        file.write("# another version\n")
    options = [f"--address={hosts.head.address}:6379", f"--node-ip-address={hosts.node.address}"]
    options.append(f'--resources={{"{CPU_SLOT}": 1}}')
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(hosts.token_file)}
    odd = [
        ray_start(hosts, tmp_path / "a", *options, PYTHONPATH=str(other), **token),
        ray_start(hosts, tmp_path / "b", *options, COMFYUI_PATH=str(tmp_path), **token),
    ]
    try:
        job = hosts.run(prompt_of(pause_s=0.1), "--count", "2")
        assert job.process.wait(RUN_S) == 0, job.log.read_text()
        said = " ".join(job.log.read_text().split())
    finally:
        for process in odd:
            process.terminate()
            process.wait(60)
    assert "is left out: its ComfyFleet" in said and "is not the same as this one" in said
    assert "is left out: " in said and "is no ComfyUI" in said


def test_a_host_that_joins_later_takes_part(hosts: TwoHosts, tmp_path: Path) -> None:
    address = "10.213.7.3"  # the second host as a third
    inside = ["ip", "-n", hosts.node.namespace, "address", "add", f"{address}/32", "dev", DEVICE]
    subprocess.run(inside, check=True)
    # Enough that the two are not done before a third one, on a busy machine, has begun.
    job = hosts.run(prompt_of(pause_s=1.0), "--count", "240")
    wait_until(lambda: job.done() or job.process.poll() is not None, "the first unit", RUN_S)
    options = [f"--address={hosts.head.address}:6379", f"--node-ip-address={address}"]
    options.append(f'--resources={{"{CPU_SLOT}": 1}}')
    usual = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(hosts.token_file)}
    usual |= {"PYTHONPATH": str(SOURCES), "COMFYUI_PATH": str(find_comfyui())}
    late = ray_start(hosts, tmp_path / "late", *options, **usual)
    try:
        assert job.process.wait(2 * RUN_S) == 0, job.log.read_text()
    finally:
        late.terminate()
        late.wait(60)
    found = compare(job, 240)
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert f"{address}-cpu0" in found["by_worker"]


def workflow(folder: Path, hosts: TwoHosts) -> list[str]:
    """Arguments of ``run`` for any workflow."""
    root = Path(__file__).resolve().parents[2]
    where = ["--cluster", hosts.head.address, "--workers", "0", "--out", str(folder / "out")]
    return [str(root / "demo" / "workflow.json"), *where]


def failure(hosts: TwoHosts, folder: Path, command: list[str], **environment: str) -> str:
    """What a command says that ends with exit code 3, as one line."""
    log = folder / "said"
    process = hosts.start(hosts.head, command, log, **environment)
    assert process.wait(RUN_S) == 3, log.read_text()
    return " ".join(log.read_text().split())


def ray_start(
    hosts: TwoHosts, folder: Path, *options: str, **environment: str
) -> subprocess.Popen[bytes]:
    """A node that was not started by us, on the second host."""
    # A fleet of another test in this process has forbidden clusters to whatever it starts.
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **environment}
    folder.mkdir()
    log = folder / "log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=0"]
    command += ["--disable-usage-stats", f"--temp-dir=/tmp/{folder.parent.name[-20:]}{folder.name}"]
    with log.open("wb") as target:
        process = hosts.node.start([*command, *options], log=target, environment=environment)
    wait_until(lambda: "Ray runtime started" in log.read_text(), "Ray", RUN_S)
    return process
