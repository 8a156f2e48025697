"""The files of ``deploy``: each Ray has its token, none is in a file, nothing is open to all."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.fleet.cluster import DEFAULT_PORT, parse_address

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())
#: 32 digits of hex or more, as a token has them.
TOKEN = re.compile(r"\b[0-9a-f]{32,}\b")


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Metadata and spec of each kind of pod."""
    cluster, master = manifests()["RayCluster"]["spec"], manifests()["Deployment"]["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], master]
    for template in (group["template"] for group in groups):
        yield template["metadata"], template["spec"]


def containers() -> list[dict[str, Any]]:
    return [container for _, spec in pods() for container in spec["containers"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_token(path: Path) -> None:
    assert not TOKEN.search(path.read_text())


def test_all_images_are_pinned() -> None:
    images = [service["image"] for service in compose()["services"].values()]
    images += [container["image"] for container in containers()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert images and all(re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image) for image in images)
    assert "latest" not in (DEPLOY / "Dockerfile").read_text()


def test_all_have_the_same_ray() -> None:
    installed = re.findall(r"ray\[default\]==([\d.]+)", (DEPLOY / "Dockerfile").read_text())
    assert installed == [manifests()["RayCluster"]["spec"]["rayVersion"]]


def test_an_image_started_by_anybody_asks_for_a_token() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in text and "RAY_USAGE_STATS_ENABLED=0" in text
    assert re.search(r"^USER (?!root)\w+", text, re.MULTILINE)


def test_each_service_has_the_token_as_a_secret() -> None:
    settings = compose()
    assert settings["secrets"] == {"cluster_token": {"file": "./cluster_token"}}
    for service in settings["services"].values():
        assert service["secrets"] == ["cluster_token"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/cluster_token"
        assert service["cap_drop"] == ["ALL"]


def test_only_the_master_is_reachable_and_only_from_its_machine() -> None:
    services = compose()["services"]
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert ports == {"head": [], "worker": [], "master": ["127.0.0.1:8188:8188"]}
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_the_services_know_their_head() -> None:
    services = compose()["services"]
    assert parse_address(services["worker"]["command"][1]) == ("head", DEFAULT_PORT)
    assert parse_address(services["master"]["environment"]["COMFYFLEET_CLUSTER"])[0] == "head"


def test_the_token_is_never_committed() -> None:
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert "deploy/cluster_token" in ignored
    assert "deploy/cluster_token" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()


def test_each_container_has_the_token_from_the_secret() -> None:
    assert len(containers()) == 3
    for container in containers():
        variables = {each["name"]: each for each in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        secret = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "comfyfleet-token", "key": "auth_token"}
        assert variables["RAY_USAGE_STATS_ENABLED"]["value"] == "0"


def test_containers_have_no_rights_that_they_do_not_need() -> None:
    for _, spec in pods():
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
    for container in containers():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_nothing_in_kubernetes_is_open_to_others() -> None:
    kinds = manifests()
    assert set(kinds) == {"RayCluster", "Deployment", "NetworkPolicy"}
    assert kinds["RayCluster"]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = kinds["NetworkPolicy"]["spec"]
    members = policy["podSelector"]["matchLabels"]
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": members}}]}]
    assert all(members.items() <= metadata["labels"].items() for metadata, _ in pods())


def test_only_our_workers_compute_on_the_nodes() -> None:
    """Ray places tasks of others where it counts CPUs."""
    spec = manifests()["RayCluster"]["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert [group["rayStartParams"]["num-cpus"] for group in groups] == ["0", "0"]


def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    command = _compose_command()
    for name in ("compose.yaml", "Dockerfile"):
        shutil.copy(DEPLOY / name, tmp_path / name)
    (tmp_path / "cluster_token").write_text("x")
    answer = subprocess.run(
        [*command, "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


def _compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            said = subprocess.run([*command, "version"], capture_output=True, check=False)
            if said.returncode == 0:
                return command
    pytest.skip("no Docker Compose is installed here")
