"""What a restart of the master does to a shared queue: nothing is lost, nothing comes twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest
from PIL import Image

from tests.queue_bed.bed import PACK, Gates, queued, save, saved, wait_to_run
from tests.support import Master, marked_processes, wait_until

pytestmark = pytest.mark.cluster

SHARED = {"COMFYFLEET_SHARE": "1", "COMFYFLEET_MASTER": "0"}


class Start(Protocol):
    def __call__(self, **settings: str) -> Master: ...


@pytest.fixture
def start(comfyui: Path, tmp_path: Path, nothing_left: None) -> Iterator[Start]:
    """Starts a master on one and the same folder, again and again."""
    running: list[Master] = []

    def begin(**settings: str) -> Master:
        given = {**SHARED, **settings}
        master = Master(
            comfyui, tmp_path / "m", workers="cpu", packs={"queue_bed": PACK}, settings=given
        )
        running.append(master)
        return master

    yield begin
    for master in running:
        if master.process.poll() is None:
            master.close()


def colors(folder: Path, prefix: str) -> list[int]:
    """Of the pictures that are there; one that is still being written is not."""
    found = []
    for path in folder.glob(f"{prefix}_*.png"):
        with suppress(OSError, SyntaxError), Image.open(path) as image:
            red, green, blue = image.getpixel((0, 0))
            found.append((red << 16) + (green << 8) + blue)
    return sorted(found)


def marked() -> set[int]:
    return {process.pid for process, _ in marked_processes()}


def is_shared(master: Master) -> bool:
    return "on" in master.get("/comfyfleet/v1/share") and master.get("/comfyfleet/v1/share")["on"]


@pytest.mark.parametrize(
    ("ended_by", "first", "then_on"),
    [(signal.SIGKILL, "TestGate", "cpu-0"), (signal.SIGINT, "TestOnlyHere", "master")],
    ids=["killed, and all goes to the worker", "ended, and the master runs its own again"],
)
def test_a_masters_queue_goes_on_where_it_was(
    start: Start, tmp_path: Path, ended_by: signal.Signals, first: str, then_on: str
) -> None:
    others = marked()  # fleets that live as long as the whole run of the tests
    master, gates = start(COMFYFLEET_MASTER="1"), Gates(tmp_path / "gates")
    wait_until(lambda: is_shared(master), "the queue to be shared", 120)
    ids = []
    for color in range(1, 5):
        # Saves one picture before its gate and one behind it.
        prompt = gates.prompt(f"g{color}", color, cls=first if color == 1 else "TestGate")
        prompt["2"]["inputs"]["image"] = ["first", 0]
        inputs = {"images": ["1", 0], "filename_prefix": "before"}
        prompt["first"] = {"class_type": "TestSaver", "inputs": inputs}
        prompt["3"] = save(["2", 0], "behind")
        ids.append(master.queue(prompt))
        if color == 1:
            gates.wait("g1")  # else the master might be given a later one before it sees its own
    assert sorted(gates.wait("g1", "g2")) == ["cpu-0", "master"]
    output = master.base / "output"
    wait_until(lambda: colors(output, "before") == [1, 2], "the first files")
    master.process.send_signal(ended_by)
    master.process.wait(60)
    wait_until(lambda: marked() <= others, "the workers to end")
    gates.forget("g1")

    again = start()
    wait_until(lambda: is_shared(again), "the queue to be shared", 120)
    running, waiting = queued(again)
    assert sorted(running + waiting) == sorted(ids)
    assert gates.wait("g1") == [then_on]
    assert colors(output, "before") == [1, 2]  # there anew, or still
    gates.open("g1", "g2", "g3", "g4")
    for prompt_id in ids:
        assert again.finish(prompt_id)["status"]["status_str"] == "success"
    assert colors(output, "before") == colors(output, "behind") == [1, 2, 3, 4]


def test_a_damaged_journal_is_kept_aside_and_said(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "m" / "user" / "comfyfleet"
    folder.mkdir(parents=True)
    (folder / "queue.sqlite3").write_bytes(b"this is no queue")
    master = start()
    wait_until(lambda: is_shared(master), "the queue to be shared", 120)
    (kept,) = folder.glob("queue.sqlite3.kept-*")
    assert kept.read_bytes() == b"this is no queue"
    assert str(kept) in master.get("/comfyfleet/v1/share")["note"]


def test_a_queue_that_is_not_written_down_is_forgotten(start: Start, tmp_path: Path) -> None:
    others = marked()
    master, gates = start(COMFYFLEET_JOURNAL="0"), Gates(tmp_path / "gates")
    wait_until(lambda: is_shared(master), "the queue to be shared", 120)
    master.run(saved(1))
    ids = [master.queue(gates.prompt(name, 2)) for name in ("held", "waits")]
    gates.wait("held")
    wait_to_run(master, ids[0])
    assert queued(master) == ([ids[0]], [ids[1]])
    assert not list(master.folder.glob("queue*"))
    master.process.kill()
    master.process.wait(60)
    wait_until(lambda: marked() <= others, "the workers to end")
    gates.forget("held")

    again = start(COMFYFLEET_JOURNAL="0")
    wait_until(lambda: is_shared(again), "the queue to be shared", 120)
    again.run(saved(3))  # before which nothing has run, on the only worker
    assert queued(again) == ([], [])
    assert not gates.reached("held") and not gates.reached("waits")
    assert not list(again.folder.glob("queue*"))
    assert again.get("/comfyfleet/v1/share")["note"] == ""
