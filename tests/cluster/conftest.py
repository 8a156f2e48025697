"""One real fleet, and one real master, for all tests of the session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from comfyfleet.fleet import Fleet, Host
from comfyfleet.planner import cpu_device
from tests import prompts
from tests.parallel_bed.bed import Bed
from tests.parallel_bed.checkpoints import write_models
from tests.queue_bed.bed import Gates
from tests.remote_bed.bed import comfyuis_elsewhere
from tests.support import Master, wait_until


@pytest.fixture(scope="module")  # a process can have one Ray at a time
def fleet(comfyui: Path, nothing_left: None) -> Iterator[Fleet]:
    """Two CPU workers of one thread each, in this very process's Ray."""
    host = Host(comfyui=comfyui, cwd=Path.cwd())
    with Fleet([cpu_device()] * 2, host) as running:
        yield running


@pytest.fixture(scope="session")
def master(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A ComfyUI that computes itself and has two CPU workers, which are there."""
    folder = tmp_path_factory.mktemp("master")
    with closing(Master(comfyui, folder, workers="cpu,cpu")) as running:
        running.run(prompts.collected(shares=3))
        wait_until(lambda: set(running.states().values()) == {"idle"}, "the workers")
        yield running


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, as ComfyUI lays it out."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def bed(
    comfyui: Path, models: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Bed]:
    """A master with tiny models and two CPU workers: three devices that compute a step."""
    running = Bed(comfyui, tmp_path_factory.mktemp("bed"), models, workers="cpu,cpu")
    yield running
    running.close()


@pytest.fixture(scope="module")
def elsewhere(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[dict[str, Master]]:
    with comfyuis_elsewhere(comfyui, tmp_path_factory.mktemp("elsewhere")) as running:
        yield running


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    """Where prompts wait; a test that fails leaves none of them waiting."""
    made = Gates(tmp_path / "gates")
    yield made
    made.open_all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The owner's folders, in which prompts name files."""
    return {name: tmp_path_factory.mktemp(name) for name in ("input", "output", "temp")}
