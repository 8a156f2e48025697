from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet.errors import InputError, WorkflowError
from comfyfleet.fleet import Delivery
from comfyfleet.fleet.batch import Batch, OutputFolder
from comfyfleet.work import OutputFile, Result, Unit
from tests.prompts import demo

VALUES = {
    "1": {"class_type": "FleetValue", "inputs": {"values": "16\n32\n48", "type": "INT"}},
    "2": {"class_type": "EmptyImage", "inputs": {"width": ["1", 0], "height": 16}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}
NOTHING_VARIES = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "seed": ["2", 0]}}}


def batch(prompt: Any = None, *, count: int = 3, seed: int | None = None) -> Batch:
    return Batch.of(prompt or demo(), count=count, seed=seed, name="demo")


def read(path: Path, *assignments: str) -> Batch:
    return Batch.read(path, count=2, seed=None, assignments=assignments)


def saved(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "my flow.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def delivery(index: int, *names: str, data: bytes = b"picture") -> Delivery:
    files = tuple(OutputFile(node_id="7", name=name, data=data) for name in names)
    return Delivery(
        unit=Unit(run_id="run", index=index, prompt={}),
        worker_id="cpu-0",
        seconds=1.23456,
        result=Result(values=None, files=files),
    )


# Batches


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"--count {count}: give 1 or more"):
        batch(count=count)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=f"--seed {seed}: give 0 to 18446744073709551615"):
        batch(seed=seed)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_ends_of_the_range_are_seeds(seed: int) -> None:
    assert batch(seed=seed).units("run")[0].prompt["5"]["inputs"]["seed"] == seed


def test_a_seed_needs_an_input_to_go_to() -> None:
    with pytest.raises(InputError, match="--seed 1: the workflow has no seed input to set"):
        batch(VALUES, seed=1)


def test_equal_runs_are_refused() -> None:
    with pytest.raises(InputError, match="--count 2: all runs would be equal"):
        batch(NOTHING_VARIES, count=2)
    assert len(batch(NOTHING_VARIES, count=1).units("run")) == 1


def test_read_takes_prompt_name_and_assignments_from_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, "\ufeff" + json.dumps(demo(steps=4)))
    found = read(path, "5.steps=9", "2.text=a blue cat")
    assert (found.name, found.count, found.seed) == ("my flow", 2, None)
    assert found.prompt["5"]["inputs"]["steps"] == 9
    assert found.prompt["2"]["inputs"]["text"] == "a blue cat"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "the workflow is empty"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}}', "node 1"),
        (b"\xff\xfe{", "cannot read the workflow"),
    ],
)
def test_read_refuses_what_is_no_prompt(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(saved(tmp_path, text))


def test_read_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot read the workflow") as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_read_refuses_a_wrong_assignment(tmp_path: Path) -> None:
    path = saved(tmp_path, json.dumps(demo()))
    with pytest.raises(InputError, match=r"NODE\.INPUT=VALUE"):
        read(path, "5.steps")
    with pytest.raises(WorkflowError, match="node 6"):
        read(path, '6.samples=["99", 0]')


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.none() | st.integers(0, 2**64 - 1))
def test_the_digest_does_not_depend_on_the_count(few: int, many: int, seed: int | None) -> None:
    assert batch(count=few, seed=seed).digest == batch(count=many, seed=seed).digest


def test_the_digest_tells_batches_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, json.dumps(demo()))
    lines = json.loads(json.dumps(VALUES))
    lines["1"]["inputs"]["values"] = "16\n32\n64"
    different = [
        batch(seed=None),
        batch(seed=77),
        batch(seed=78),
        read(path, "5.steps=9"),
        read(path, "2.text=a blue cat"),
        batch(VALUES),
        batch(lines),
    ]
    assert len({each.digest for each in different}) == len(different)


def test_the_digest_is_of_what_runs_and_not_of_how_it_was_said(tmp_path: Path) -> None:
    path = saved(tmp_path, json.dumps(demo(seed=5), indent=2))
    same = [batch(demo(seed=5)), batch(demo(seed=1), seed=5), read(path), read(path, "5.seed=5")]
    assert len({each.digest for each in same}) == 1


def test_units_count_their_seeds_up() -> None:
    units = batch(demo(seed=40)).units("run")
    assert [unit.id for unit in units] == ["run:0", "run:1", "run:2"]
    assert [unit.prompt["5"]["inputs"]["seed"] for unit in units] == [40, 41, 42]
    assert len({unit.model_key for unit in units}) == 1 and units[0].model_key


def test_units_take_their_lines() -> None:
    units = batch(VALUES, count=4).units("run")
    assert [unit.prompt["1"]["inputs"]["values"] for unit in units] == ["16", "32", "48", "16"]


@settings(deadline=None)
@given(st.sets(st.integers(-2, 12)), st.integers(1, 10))
def test_what_is_left_is_what_it_would_have_been(skip: set[int], count: int) -> None:
    every = {unit.index: unit.prompt for unit in batch(count=count).units("run")}
    left = batch(count=count).units("run", skip=sorted(skip, reverse=True))
    assert [unit.index for unit in left] == [i for i in range(count) if i not in skip]
    assert all(unit.prompt == every[unit.index] for unit in left)


# The output folder


def test_save_writes_files_and_manifest(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "new" / "out", batch(), resume=False)
    paths = folder.save(delivery(7, "a.png", "deep/er/b.png"))
    assert [path.name for path in paths] == ["0007_a.png", "0007_deep_er_b.png"]
    assert all(path.read_bytes() == b"picture" for path in paths)
    manifest = json.loads((tmp_path / "new" / "out" / "manifest.json").read_text())
    assert manifest == {
        "batch": batch().digest,
        "name": "demo",
        "units": {
            "7": {
                "files": ["0007_a.png", "0007_deep_er_b.png"],
                "worker": "cpu-0",
                "seconds": 1.235,
            }
        },
    }
    names = {path.name for path in folder.folder.iterdir()}
    assert names == {"manifest.json", "0007_a.png", "0007_deep_er_b.png", ".lock"}


def test_nothing_is_written_before_the_first_result(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", batch(), resume=False)
    assert folder.finished == [] and not list(folder.folder.glob("[!.]*"))


def test_a_unit_without_files_is_refused(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", batch(), resume=False)
    with pytest.raises(InputError, match=r"saves no files\. Add a node such as SaveImage"):
        folder.save(delivery(0))
    assert not list(folder.folder.glob("[!.]*"))


def test_no_file_of_a_unit_replaces_another(tmp_path: Path) -> None:
    paths = OutputFolder(tmp_path, batch(), resume=False).save(delivery(0, "a/b.png", "a_b.png"))
    assert len(set(paths)) == 2


@settings(deadline=None)
@given(names=st.lists(st.text("ab./_\\:\0\n", min_size=1, max_size=9), min_size=1, max_size=4))
def test_no_name_leads_out_of_the_folder(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    for path in OutputFolder(out, batch(), resume=False).save(delivery(0, *names)):
        assert path.resolve().parent == out.resolve() and path.is_file()


def test_resume_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path, batch(count=3), resume=False)
    first.save(delivery(2, "a.png"))
    first.save(delivery(0, "a.png"))
    first.close()
    again = OutputFolder(tmp_path, batch(count=8), resume=True)
    assert sorted(again.finished) == [0, 2]
    again.save(delivery(1, "a.png"))
    again.close()
    last = OutputFolder(tmp_path, batch(count=8), resume=True)
    assert sorted(last.finished) == [0, 1, 2]


def test_a_run_with_a_deleted_file_is_not_finished(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, batch(), resume=False)
    folder.save(delivery(0, "a.png", "b.png"))
    folder.save(delivery(1, "a.png"))
    (tmp_path / "0000_b.png").unlink()
    folder.close()
    assert OutputFolder(tmp_path, batch(), resume=True).finished == [1]


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path, batch(), resume=False)
    with pytest.raises(InputError, match="another run writes there"):
        OutputFolder(tmp_path, batch(), resume=False)
    first.close()
    OutputFolder(tmp_path, batch(), resume=False).close()


def test_results_are_not_overwritten_without_resume(tmp_path: Path) -> None:
    OutputFolder(tmp_path, batch(), resume=False).save(delivery(0, "a.png"))
    with pytest.raises(InputError, match=r"exists: .*Add --resume .*--out"):
        OutputFolder(tmp_path, batch(), resume=False)


def test_resume_needs_something_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume: .*manifest\.json does not exist"):
        OutputFolder(tmp_path, batch(), resume=True)


@pytest.mark.parametrize(
    "other", [batch(demo(steps=9)), batch(seed=9), batch(demo(text="a cat"))], ids=str
)
def test_resume_of_another_batch_is_refused(other: Batch, tmp_path: Path) -> None:
    OutputFolder(tmp_path, batch(), resume=False).save(delivery(0, "a.png"))
    with pytest.raises(InputError, match=r"belongs to another workflow.*\('demo'\).*--out"):
        OutputFolder(tmp_path, other, resume=True)


@pytest.mark.parametrize("text", [b"", b"{", b'{"batch": ', b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(.*--out"):
        OutputFolder(tmp_path, batch(), resume=True)


DAMAGED = {
    "a number": 3,
    "null": None,
    "a list": [1],
    "no units": {"batch": batch().digest},
    "units are a list": {"batch": batch().digest, "units": []},
    "a unit without files": {"batch": batch().digest, "units": {"0": {}}},
    "a name for a number": {"batch": batch().digest, "units": {"x": {"files": []}}},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_manifest_of_another_shape_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(DAMAGED[case]))
    with pytest.raises(InputError, match="damaged"):
        assert OutputFolder(tmp_path, batch(), resume=True).finished


def test_a_file_in_the_folders_place_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out"):
        OutputFolder(tmp_path / "out", batch(), resume=False)
