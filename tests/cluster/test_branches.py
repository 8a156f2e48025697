"""Branches of a prompt on workers, through /prompt of a real ComfyUI with two real workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import prompts
from tests.cluster.test_collector import pixels, prompts_of_workers, worker_logs
from tests.cluster.test_shipping import PACK, node
from tests.support import Master, error_of, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", params=["0", "1"])
def finds(request: pytest.FixtureRequest) -> str:
    """COMFYFLEET_BRANCHES."""
    return str(request.param)


@pytest.fixture(scope="module")
def master(
    finds: str, comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    base, packs = tmp_path_factory.mktemp("branches"), {"branch_pack": PACK}
    settings = {"COMFYFLEET_BRANCHES": finds}
    made = Master(comfyui, base, workers="cpu,cpu", packs=packs, settings=settings)
    with closing(made) as running:
        # The workers start: nodes that wait for each other wait for no more than each other.
        running.run(prompts.collected(shares=2, delegate=True))
        yield running


def ways(count: int, folder: Path, *, marked: bool, **last: Any) -> dict[str, Any]:
    """So many samplers behind one text encoder; they end when all have met in the folder."""
    demo = prompts.demo(steps=2)
    shared = {each: demo[each] for each in ("1", "3", "4")}
    text = demo["2"]["inputs"]["text"]
    shared["2"] = node("TestEncode", clip=["1", 1], text=text, file=str(folder.parent / "encoded"))
    prompt = dict(shared)
    for i in range(count):
        sampler = {**demo["5"]["inputs"], "seed": i}
        prompt |= {
            f"5{i}": node("KSampler", **sampler),
            f"6{i}": node("VAEDecode", samples=[f"5{i}", 0], vae=["1", 2]),
            f"7{i}": node(
                "TestMeet", image=[f"6{i}", 0], folder=str(folder), name=f"{i}", count=count
            ),
            f"9{i}": node("SaveImage", images=[f"7{i}", 0], filename_prefix="way"),
        }
        if marked and i:
            prompt[f"8{i}"] = node("FleetBranch", value=[f"7{i}", 0])
            prompt[f"9{i}"]["inputs"]["images"] = [f"8{i}", 0]
    return prompt


def test_branches_run_at_the_same_time_as_the_rest(
    master: Master, finds: str, tmp_path: Path
) -> None:
    """Three samplers that end only when all three run: on two workers, and here."""
    folder = tmp_path / "meet"
    folder.mkdir()
    entry = master.run(ways(3, folder, marked=finds == "0"))
    where = {(folder / str(i)).read_text().strip() for i in range(3)}
    assert len(where) == 3 and "master" in where
    assert (tmp_path / "encoded").read_text().split() == ["master"]
    for i in range(3):
        alone = master.files(master.run(prompts.demo(steps=2, seed=i)), "7")
        assert pixels(master.files(entry, f"9{i}")) == pixels(alone)


def test_a_branch_is_computed_once(master: Master, finds: str, tmp_path: Path) -> None:
    folder = tmp_path / "meet"
    folder.mkdir()
    prompt = ways(3, folder, marked=finds == "0")
    master.run(prompt)
    before = prompts_of_workers(master)
    master.run(prompt)
    assert prompts_of_workers(master) == before


def test_more_branches_than_workers(master: Master, finds: str, tmp_path: Path) -> None:
    folder = tmp_path / "meet"
    folder.mkdir()
    prompt = ways(5, folder, marked=finds == "0")
    for i in range(5):
        prompt[f"7{i}"]["inputs"]["count"] = 1
    entry = master.run(prompt)
    assert len({*pixels([path for i in range(5) for path in master.files(entry, f"9{i}")])}) == 5


def test_a_failing_branch_fails_the_prompt(master: Master, finds: str, tmp_path: Path) -> None:
    folder = tmp_path / "meet"
    folder.mkdir()
    prompt = ways(3, folder, marked=finds == "0")
    for i in range(3):
        prompt[f"7{i}"] = node("TestFail", image=[f"6{i}", 0])
    entry = master.finish(master.queue(prompt))
    text = error_of(entry)
    assert "(TestFail)" in text and "as the test wants it" in text
    assert "node 71" in text or "node 72" in text
    # The other branch may still run: a worker that is not idle gets none of the next prompt's.
    wait_until(lambda: set(master.states().values()) == {"idle"}, "the workers to stop")


def test_cancel_reaches_branches(master: Master, finds: str, tmp_path: Path) -> None:
    folder = tmp_path / "meet"
    folder.mkdir()
    prompt = ways(3, folder, marked=finds == "0")
    for i in range(3):
        prompt[f"7{i}"]["inputs"]["count"] = 4
    before = [log.count("Processing interrupted") for log in worker_logs(master)]
    prompt_id = master.queue(prompt)
    wait_until(lambda: len(list(folder.iterdir())) == 3, "all three to run")
    master.post("/interrupt", {})
    assert master.finish(prompt_id)["status"]["status_str"] == "error"
    wait_until(
        lambda: all(
            log.count("Processing interrupted") > old
            for log, old in zip(worker_logs(master), before, strict=True)
        ),
        "the workers to stop",
    )


def test_a_model_cannot_be_a_branch(master: Master, finds: str) -> None:
    prompt = prompts.demo(steps=2)
    prompt["8"] = node("FleetBranch", value=["1", 0])
    prompt["5"]["inputs"]["model"] = ["8", 0]
    with pytest.raises(AssertionError, match="value is a MODEL") as refused:
        master.queue(prompt)
    assert "FleetBranch" in str(refused.value)


def test_a_branch_of_which_nothing_is_its_own_is_computed_here(
    master: Master, tmp_path: Path
) -> None:
    frames = node("TestFrames", name="z", count=3, file=str(tmp_path / "made"))
    prompt = {
        "1": frames,
        "2": node("FleetBranch", value=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="branch"),
        "4": node("SaveImage", images=["1", 0], filename_prefix="branch"),
    }
    entry = master.run(prompt)
    assert (tmp_path / "made").read_text().split() == ["master"]
    assert pixels(master.files(entry, "3")) == pixels(master.files(entry, "4"))
