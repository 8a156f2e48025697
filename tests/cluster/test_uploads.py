"""Files for ComfyUIs elsewhere: over a road that breaks, and without room; sent once each way."""

from __future__ import annotations

import os
import resource
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyfleet.api import BASE
from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.config import Remote
from comfyfleet.errors import RunFailed
from comfyfleet.fleet import Fleet, Host, new_run_id
from comfyfleet.work import Mirrored, SavedFile, Unit
from tests.queue_bed.bed import Gates, picture, save
from tests.remote_bed.bed import KINDS, Prompt, Watched, begin, pixels, remote, results, returning
from tests.remote_bed.road import Road, road_to
from tests.support import Master, wait_until

pytestmark = pytest.mark.cluster

MIB = 1 << 20
#: What all else of a short run takes.
_TALK_BYTES = MIB


@dataclass
class Box:
    kind: str
    master: Master
    road: Road
    fleet: Fleet


@pytest.fixture
def large(folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    """A picture of some 24 MB that was never sent before."""
    path = folders["input"] / "large.png"
    seed = sum(map(ord, request.node.name))
    noise = np.random.default_rng(seed).integers(0, 256, (2000, 4000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    return path


def loading(path: Path) -> Prompt:
    return returning({"1": {"class_type": "LoadImage", "inputs": {"image": path.name}}}, ["1", 0])


def test_a_file_above_the_limit_of_a_plain_one_goes_to_another(
    comfyui: Path,
    tmp_path: Path,
    folders: dict[str, Path],
    elsewhere: dict[str, Master],
    large: Path,
) -> None:
    """And nothing of it is sent to the first. This test is first: a process has one fleet."""
    flags = ["--max-upload-size", "4"]
    small = Master(comfyui, tmp_path / "small", workers="0", flags=flags, plain=True)
    host, watched = Host(comfyui=comfyui, cwd=Path.cwd(), folders=folders), Watched()
    with closing(small), road_to(small.port) as road:
        remotes = [Remote(name="small", url=road.url), remote("other", elsewhere["extension"])]
        with Fleet([], host, remotes=remotes) as fleet:
            wait_until(lambda: len(fleet.workers) == 2, "both", 60)
            run = begin(fleet, *[loading(large)] * 2, watched=watched)
            assert run.wait(120)
            assert {each.worker_id for each in run.results()} == {"other"}
            assert road.sent < _TALK_BYTES
    refusals = [event.failure for event in watched.of("failed") if event.failure]
    assert {(each.kind, "--max-upload-size" in each.message) for each in refusals} == {
        ("unfit", True)
    }


def test_files_that_nobody_uses_go_and_those_of_a_prompt_that_runs_stay(
    elsewhere: dict[str, Master], gates: Gates
) -> None:
    there = elsewhere["extension"]
    folder = there.base / "input" / "comfyfleet"
    folder.mkdir(parents=True, exist_ok=True)
    used, unused, wanted = (f"{digit * 40}.png" for digit in "abc")
    for name in (used, unused):
        Image.new("RGB", (8, 8)).save(folder / name)
        os.utime(folder / name, (0, 0))
    load = {"class_type": "LoadImage", "inputs": {"image": f"comfyfleet/{used}"}}
    running = there.queue(gates.prompt("input") | {"4": load, "5": save(["4", 0])})
    gates.wait("input")
    os.utime(folder / used, (0, 0))  # it may have been looked at
    assert there.get(f"{BASE}/guest/inputs/{wanted}?size=1") == {"start": 0}
    assert (folder / used).exists() and not (folder / unused).exists()
    gates.open("input")
    assert there.finish(running)["status"]["status_str"] == "success"


@pytest.fixture(scope="module", params=KINDS)
def box(
    request: pytest.FixtureRequest,
    comfyui: Path,
    folders: dict[str, Path],
    elsewhere: dict[str, Master],
) -> Iterator[Box]:
    """A worker of this kind at the end of a road."""
    master = elsewhere[request.param]
    with road_to(master.port) as road:
        there = Remote(name="box", url=road.url, token=master.token)
        host = Host(comfyui=comfyui, cwd=Path.cwd(), folders=folders)
        with Fleet([], host, remotes=[there]) as fleet:
            yield Box(request.param, master, road, fleet)


def test_a_file_goes_on_where_it_was_broken_off(box: Box, large: Path) -> None:
    """A plain ComfyUI takes a file whole alone, so there it is sent again."""
    before = box.road.sent
    box.road.cut_at = before + 2 * PIECE_BYTES + PIECE_BYTES // 2
    (result,) = results(begin(box.fleet, loading(large)))
    assert pixels(result).shape == (1, 2000, 4000, 3) and box.road.cuts == 1
    sent, size = box.road.sent - before, large.stat().st_size
    again = PIECE_BYTES if box.kind == "extension" else 3 * PIECE_BYTES
    assert size <= sent < size + again + _TALK_BYTES
    results(begin(box.fleet, loading(large)))
    assert box.road.sent - before < sent + _TALK_BYTES, "it is there"


def test_a_long_text_is_not_looked_for_as_a_file(box: Box) -> None:
    text = {"class_type": "PrimitiveString", "inputs": {"value": "a masterpiece " * 40}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}
    results(begin(box.fleet, returning(picture(1, 16) | {"4": text, "5": shown}, ["1", 0])))


def test_what_is_cached_there_is_not_sent_home_again(box: Box, large: Path) -> None:
    """Neither values nor saved files; from a plain ComfyUI too."""
    prompt = loading(large) | {"3": save(["1", 0], "cached")}
    (first,) = results(begin(box.fleet, prompt))
    before = box.road.came
    (again,) = results(begin(box.fleet, prompt))
    assert box.road.came - before < _TALK_BYTES
    assert np.array_equal(pixels(first), pixels(again))
    assert [file.data for file in first.files] == [file.data for file in again.files]
    (other,) = results(begin(box.fleet, loading(large) | {"3": save(["1", 0], "another")}))
    assert other.files[0].name.startswith("another_")


def test_what_a_client_was_shown_before_is_not_sent_home_again(box: Box, large: Path) -> None:
    """Of its whole prompt, from which it has changed something else meanwhile."""
    load = {"class_type": "LoadImage", "inputs": {"image": large.name}}
    prompt = {"1": load, "3": save(["1", 0], "shown")}
    (first,) = shown(box, prompt, "3")
    before = box.road.came
    prompt |= {"4": picture(3, 16)["1"], "5": save(["4", 0], "new")}
    again, new = shown(box, prompt, "3", "5")
    assert box.road.came - before < _TALK_BYTES
    assert again.data == first.data and new.name.startswith("new_")


def shown(box: Box, prompt: Prompt, *outputs: str) -> list[SavedFile]:
    """The files that a client's prompt of the shared queue saves, in the order of nodes."""
    asked = Mirrored(prompt_id=str(uuid.uuid4()), extra_data={}, outputs=outputs, features={})
    unit = Unit(run_id=new_run_id(), index=0, prompt=prompt, mirrored=asked)
    watched = Watched()
    results(box.fleet.submit([unit], watched))
    told = [event.told for event in watched.of("told") if event.told and event.told.files]
    return [file for each in sorted(told, key=lambda t: t.data["node"]) for file in each.files]


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """This process can write no file of more than 4 MiB: the same error at the same place."""
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4 * MIB, unlimited))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


def test_a_full_disk_leaves_a_worker_out_of_that_unit_alone(box: Box, large: Path) -> None:
    said = {"plain": "answered 500 to an upload", "extension": "an input file cannot be kept in"}
    watched = Watched()
    with full_disk(box.master.process.pid):
        with pytest.raises(RunFailed, match=said[box.kind]):
            begin(box.fleet, loading(large), watched=watched).wait(120)
        assert {e.failure.kind for e in watched.of("failed") if e.failure} == {"unfit"}
        results(begin(box.fleet, returning(picture(1, 16), ["1", 0])))  # it is not closed
    results(begin(box.fleet, loading(large)))
