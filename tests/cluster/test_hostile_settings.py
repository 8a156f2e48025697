"""The routes that write fleet.yaml, given anything at all.

No fleet runs in this ComfyUI, as no GPU is shown to it: what is written is asked of nobody, and
starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import yaml

from comfyfleet.api import BASE
from comfyfleet.config import FILE_NAME, SETTINGS, load
from tests.remote_bed.hostile import (
    AS_DESCRIBED,
    Server,
    answered_as_described,
    anything,
    described,
    files_of,
)
from tests.support import marked_processes

pytestmark = pytest.mark.cluster

schema = described().include(path_regex=f"^{BASE}/config")


@pytest.fixture(scope="module")
def fleets_before() -> set[str]:
    """Of other tests in this process."""
    return sessions()


def sessions() -> set[str]:
    return {session for _, session in marked_processes()}


@pytest.fixture(scope="module")
def server(
    comfyui: Path,
    tmp_path_factory: pytest.TempPathFactory,
    nothing_left: None,
    fleets_before: set[str],
) -> Iterator[Server]:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    folder = tmp_path_factory.mktemp("settings")
    running = Server(comfyui, folder, workers="auto", settings=hidden)
    yield running
    running.close()


@pytest.fixture(scope="module")
def files_before(server: Server) -> set[Path]:
    return files_of(server)


def test_without_a_gpu_auto_is_no_worker_and_what_to_do_is_said(server: Server) -> None:
    status, _, said = server.ask("POST", f"{BASE}/share", '{"on": true}')
    assert (status, "workers is 'auto' (auto: each GPU here but" in said["error"]) == (400, True)
    assert "Set COMFYFLEET_WORKERS" in server.get(f"{BASE}/share")["note"]
    assert server.get(f"{BASE}/status")["fleet"] == "none"


@schema.parametrize()
@anything
def test_anything_leaves_a_file_that_can_be_used(
    case: schemathesis.Case, server: Server, files_before: set[Path]
) -> None:
    answered_as_described(case, server)
    if "key" in (case.path_parameters or {}):
        for key in filter(None, (setting.key for setting in SETTINGS)):  # chance hits few of them
            case.path_parameters["key"] = key
            answered_as_described(case, server, AS_DESCRIBED)
    load(server.folder / FILE_NAME)


def test_afterwards_it_can_be_written_and_nothing_else_was_or_started(
    server: Server, files_before: set[Path], fleets_before: set[str]
) -> None:
    file = server.folder / FILE_NAME
    status, _, _ = server.ask("POST", f"{BASE}/config/settings/stagger", '{"value": "3"}')
    assert status == 200
    assert yaml.safe_load(file.read_text())["settings"]["stagger"] == 3
    new = files_of(server) - files_before
    assert new <= {file, file.with_name(f"{file.name}.lock"), server.folder}
    assert server.get(f"{BASE}/status")["fleet"] == "none"
    assert sessions() <= fleets_before
    assert "Error handling request" not in server.log.read_text()
