"""Which cluster is meant, which token lets us in, and what Ray is started with."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from comfyfleet.config import Config
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet import guard
from comfyfleet.fleet.cluster import (
    Cluster,
    check_cluster,
    chosen_cluster,
    own_address,
    parse_address,
    read_token,
)
from comfyfleet.fleet.cluster_worker import (
    NodeSpec,
    code_digest,
    describe_node,
    node_addresses,
)
from comfyfleet.fleet.ray_node import CPU_SLOT, NodePlan
from comfyfleet.fleet.spec import Host
from comfyfleet.planner import Device, cpu_device
from tests.support import free_port, wait_until

TOKEN = "a" * 64


@pytest.fixture(autouse=True)
def _nobody_named_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COMFYFLEET_CLUSTER", "COMFYFLEET_INSECURE_CLUSTER", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.168.1.5", ("192.168.1.5", 6379)),
        ("192.168.1.5:7000", ("192.168.1.5", 7000)),
        (" head.lan:6379 ", ("head.lan", 6379)),
        ("comfyfleet-head-svc", ("comfyfleet-head-svc", 6379)),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text",
    ["ray://head:10001", "http://head", "head:80", "head:99999", "a b", "head:", "", "[::1]:6379"],
)
def test_another_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"give HOST or HOST:PORT .*192\.168\.1\.5:6379"):
        parse_address(text)


def test_no_cluster_unless_one_is_named() -> None:
    assert chosen_cluster(Config()) is None


@pytest.mark.parametrize("variable", ["COMFYFLEET_CLUSTER", "RAY_ADDRESS"])
def test_a_variable_names_a_cluster(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "head:7000")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    cluster = chosen_cluster(Config())
    assert cluster == Cluster(host="head", port=7000, token=TOKEN)
    assert cluster is not None and TOKEN not in repr(cluster)


def test_the_option_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "other")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    cluster = chosen_cluster(Config(), "head")
    assert cluster is not None and cluster.host == "head"


def test_ray_address_may_say_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert chosen_cluster(Config()) is None


def test_a_cluster_without_a_token_is_refused_with_the_place_for_it() -> None:
    with pytest.raises(InputError, match=r"no token .*\.ray/auth_token.*RAY_AUTH_TOKEN_PATH"):
        chosen_cluster(Config(), "head")


def test_its_owner_may_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Cluster(host="head", port=6379, insecure=True)
    assert chosen_cluster(Config(), "head", insecure=True) == expected
    monkeypatch.setenv("COMFYFLEET_INSECURE_CLUSTER", "1")
    assert chosen_cluster(Config(), "head") == expected


def test_the_token_is_found_as_ray_finds_it(tmp_path: Path) -> None:
    assert read_token(environ={}) == ""
    default = Path.home() / ".ray" / "auth_token"
    default.parent.mkdir(parents=True)
    default.write_text("default\n")
    assert read_token(environ={}) == "default"
    named = tmp_path / "named"
    named.write_text(" named ")
    assert read_token(environ={"RAY_AUTH_TOKEN_PATH": str(named)}) == "named"
    both = {"RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "variable"}
    assert read_token(environ=both) == "variable"
    assert read_token(default, both) == "default"


def test_a_named_token_file_must_hold_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the cluster's token"):
        read_token(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match=r"empty is empty; copy"):
        read_token(tmp_path / "empty")


def test_where_nothing_answers_it_is_said() -> None:
    cluster = Cluster(host="127.0.0.1", port=free_port(), token=TOKEN)
    with pytest.raises(FleetError, match=f"nothing answers at {cluster.address} "):
        check_cluster(cluster)


def test_what_is_no_head_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes half a minute to find that out."""
    monkeypatch.setattr("comfyfleet.fleet.cluster._probe", lambda *_: "RpcError: Timed out.")
    said = r"what answers at head:7000 is no Ray head \(RpcError: Timed out\)\. Give the address"
    with pytest.raises(FleetError, match=said):
        check_cluster(Cluster(host="head", port=7000, token=TOKEN))


def test_loopback_is_no_address_for_others() -> None:
    assert own_address("127.0.0.1", 6379) is None
    assert own_address("no.such.host.invalid", 6379) is None


def plan(folder: Path, **options: object) -> NodePlan:
    return NodePlan(
        **{
            "folder": folder,
            "token_file": folder / "token",
            "head": "10.0.0.1:6379",
            "port": 6379,
            "address": "10.0.0.2",
            **options,
        }
    )


def test_ray_is_never_started_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    variables = plan(tmp_path).variables()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables[guard.SESSION_MARK] == str(tmp_path)
    assert TOKEN not in variables.values(), "every process of the node would show it"
    assert not [word for word in plan(tmp_path).command() if TOKEN in word]


def test_a_node_offers_what_it_is_told_to(tmp_path: Path) -> None:
    command = plan(tmp_path, gpus=2, cpu_slots=3).command()
    assert "--address=10.0.0.1:6379" in command and "--node-ip-address=10.0.0.2" in command
    assert "--num-gpus=2" in command and "--num-cpus=0" in command
    assert f'--resources={{"{CPU_SLOT}": 3}}' in command and "--head" not in command


def test_a_head_has_no_dashboard(tmp_path: Path) -> None:
    command = plan(tmp_path, head=None, port=7000).command()
    assert "--head" in command and "--port=7000" in command
    assert "--include-dashboard=false" in command
    assert not [word for word in command if word.startswith("--address")]


def spec(device: Device) -> NodeSpec:
    host = Host(comfyui=Path("/comfyui"), cwd=Path("/"))
    return NodeSpec(id="pc-gpu0", device=device, host=host, address="10.0.0.2", node="pc")


def test_a_worker_asks_for_its_device_on_its_node() -> None:
    gpu, cpu = spec(Device(kind="cuda")).demand, spec(cpu_device()).demand
    assert gpu["num_gpus"] == 1 and set(gpu["resources"]) == {"node:10.0.0.2"}
    assert cpu["num_gpus"] == 0 and cpu["resources"][CPU_SLOT] == 1
    assert "node:10.0.0.2" in cpu["resources"]


def test_workers_on_nodes_have_their_order_whichever_started_first() -> None:
    """The first one that lives is what a node is called by."""
    ids = ("pc-gpu0", "pc-gpu1", "pc-gpu2")
    specs = [replace(spec(Device(kind="cuda")), id=each) for each in ids]
    assert list(node_addresses(specs, {"pc-gpu2", "pc-gpu0"})) == ["pc-gpu0", "pc-gpu2"]


def test_a_node_tells_what_it_has(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    told = describe_node(str(comfyui))
    assert told["comfyui"] == str(comfyui.resolve()) and told["fault"] == ""
    assert told["code"] == code_digest()


def test_a_node_without_comfyui_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert "is no ComfyUI" in describe_node("/no/such/folder")["fault"]


def test_a_node_with_an_old_comfyui_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    said = describe_node("/no/such/folder")["fault"]
    assert said == f"{tmp_path} is ComfyUI 0.3.40; 0.3.75 is needed: update."


def test_a_detached_guard_is_no_child_and_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, guard.__file__, str(folder), guard.DETACH]
        subprocess.run(command, stdin=there, check=True, timeout=60)
        there.close()
        assert folder.exists()
    wait_until(lambda: not folder.exists(), "the folder to be removed")
