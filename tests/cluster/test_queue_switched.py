"""A shared queue while it is switched, interrupted at once, or asked for something odd."""

from __future__ import annotations

import sqlite3
import urllib.error
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from tests.queue_bed.bed import (
    PACK,
    Gates,
    fault,
    hold,
    queued,
    save,
    saved,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with one worker, which runs all that is shared."""
    base = tmp_path_factory.mktemp("switched")
    running = Master(comfyui, base, workers="cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


def test_a_cached_picture_is_the_same_after_sharing_was_switched(server: Master) -> None:
    unshare(server)
    server.run(saved(1))  # takes the number that the worker's own first file has
    share(server)
    server.run(saved(2))
    share(server)
    (path,) = server.files(server.run(saved(2)), "3")
    assert Image.open(path).getpixel((0, 0)) == (0, 0, 2)


def test_a_picture_that_could_not_be_placed_is_placed_by_the_next_try(server: Master) -> None:
    share(server)
    blocked = server.base / "output" / "blocked"
    blocked.write_text("no folder")
    entry = server.finish(server.queue(saved(3, "blocked/picture")))
    assert entry["status"]["status_str"] == "error"
    blocked.unlink()
    (path,) = server.files(server.run(saved(3, "blocked/picture")), "3")
    assert path.exists()


def test_what_ended_while_nothing_was_shared_does_not_run_again(
    server: Master, gates: Gates
) -> None:
    share(server)
    (held,) = hold(server, gates, "held").values()
    waiting = server.queue(saved(5, "once"))
    unshare(server)
    gates.open("held")
    for prompt_id in (held, waiting):
        assert server.finish(prompt_id)["status"]["status_str"] == "success"
    share(server)
    assert not any(queued(server))
    server.run(saved(6))
    assert len(list((server.base / "output").glob("once_*"))) == 1


def test_an_interrupt_after_sharing_ended_stops_the_right_prompt(
    server: Master, gates: Gates
) -> None:
    share(server)
    (theirs,) = hold(server, gates, "theirs").values()
    unshare(server)
    ours = server.queue(gates.prompt("ours", 8))
    gates.wait("ours")
    server.post("/interrupt", {"prompt_id": theirs})
    assert server.finish(theirs)["status"]["status_str"] == "error"
    gates.open("ours", "theirs")
    assert server.finish(ours)["status"]["status_str"] == "success"


def test_an_interrupt_at_once_frees_the_worker(server: Master, gates: Gates) -> None:
    share(server)
    for number in range(20):
        prompt_id = server.queue(gates.prompt(f"g{number}", number))
        wait_until(lambda at=prompt_id: at in queued(server)[0], "it to run")
        server.post("/interrupt", {"prompt_id": prompt_id})
        assert server.finish(prompt_id)["status"]["status_str"] == "error"
    server.run(saved(9))  # the only worker has nothing else in hand


def test_a_master_that_computes_nothing_takes_nothing_while_it_is_switched_anew(
    server: Master, gates: Gates
) -> None:
    share(server)
    names = [f"n{i}" for i in range(6)]
    ids = [server.queue(gates.prompt(name, 20 + i)) for i, name in enumerate(names)]
    gates.wait(names[0])
    for _ in range(5):
        share(server)
    gates.open(*names)
    for prompt_id in ids:
        assert server.finish(prompt_id)["status"]["status_str"] == "success"
    assert {gates.who(name) for name in names} == {"cpu-0"}


def test_what_is_deleted_while_sharing_is_switched_stays_deleted(
    server: Master, gates: Gates
) -> None:
    share(server)
    (held,) = hold(server, gates, "holds").values()
    ids = [server.queue(gates.prompt(f"d{i}", i)) for i in range(40)]
    with ThreadPoolExecutor(1) as other:
        switching = other.submit(lambda: [share(server) for _ in range(20)])
        for prompt_id in ids:
            server.post("/queue", {"delete": [prompt_id]})
        switching.result()
    assert queued(server) == ([held], [])
    gates.open("holds")
    assert server.finish(held)["status"]["status_str"] == "success"


def test_what_runs_while_sharing_is_switched_stays_written_down(
    server: Master, gates: Gates
) -> None:
    share(server)
    prompt = gates.prompt("before", 43) | {"5": gates.prompt("behind")["2"]}
    inputs = {"images": ["2", 0], "filename_prefix": "noted"}
    prompt["4"] = {"class_type": "TestSaver", "inputs": inputs}
    prompt["5"]["inputs"]["image"] = ["4", 0]
    prompt["3"]["inputs"]["images"] = ["5", 0]
    running = server.queue(prompt)
    gates.wait("before")
    share(server)
    gates.open("before")
    gates.wait("behind")
    wait_until(lambda: list((server.base / "output").glob("noted_*")), "the file")
    with closing(sqlite3.connect(server.folder / "queue.sqlite3")) as db:
        (file,) = db.execute("SELECT file FROM placed").fetchone()
    assert "noted_" in file
    gates.open("behind")
    assert server.finish(running)["status"]["status_str"] == "success"
    wait_until(lambda: not queued(server)[0], "the end")
    with closing(sqlite3.connect(server.folder / "queue.sqlite3")) as db:
        assert not db.execute("SELECT * FROM prompts").fetchall()


def test_two_prompts_with_one_id_are_two_prompts(server: Master, gates: Gates) -> None:
    share(server)
    given = str(uuid.uuid4())
    for name, color in (("first", 40), ("second", 41), ("third", 42)):
        prompt = gates.prompt(name, color)
        assert server.post("/prompt", {"prompt": prompt, "prompt_id": given})["prompt_id"] == given
    assert gates.wait("first") == ["cpu-0"]
    wait_to_run(server, given)
    server.post("/queue", {"delete": [given]})  # one that waits, as in one ComfyUI
    assert queued(server) == ([given], [given])
    gates.open("first")
    wait_until(lambda: gates.reached("second") or gates.reached("third"), "the next one")
    assert server.get("/history")[given]["status"]["status_str"] == "success"
    gates.open("second", "third")
    wait_until(lambda: queued(server) == ([], []), "the queue to be empty")
    assert gates.reached("second") != gates.reached("third")


def test_a_prompt_is_not_taken_for_one_that_was_put_before_it(server: Master, gates: Gates) -> None:
    """Both have one id, and wait."""
    share(server)
    held, given = server.queue(gates.prompt("held", 43)), str(uuid.uuid4())
    gates.wait("held")
    for name, color, front in (("later", 44, False), ("sooner", 45, True)):
        asked = {"prompt": gates.prompt(name, color), "prompt_id": given, "front": front}
        server.post("/prompt", asked)
    gates.open("held", "later", "sooner")
    server.finish(held)
    wait_until(lambda: queued(server) == ([], []), "the queue to be empty")
    assert gates.reached("later") and gates.reached("sooner")


def test_what_the_owner_has_put_in_a_files_place_stays(server: Master, gates: Gates) -> None:
    """When the prompt that had saved there begins anew, as its worker is lost."""
    share(server)
    prompt = gates.prompt("edited", 60)
    prompt["2"]["inputs"]["image"] = ["4", 0]
    inputs = {"images": ["1", 0], "filename_prefix": "mine"}
    prompt["4"] = {"class_type": "TestSaver", "inputs": inputs}
    running, path = server.queue(prompt), server.base / "output" / "mine_00001_.png"
    gates.wait("edited")
    wait_until(path.exists, "the file")
    path.write_bytes(b"of the owner")
    gates.forget("edited")
    server.post("/comfyfleet/v1/workers/cpu-0/restart", {})
    gates.wait("edited")
    gates.open("edited")
    entry = server.finish(running)
    assert entry["status"]["status_str"] == "success"
    assert path.read_bytes() == b"of the owner"
    assert [file.name for file in server.files(entry, "4")] == ["mine_00002_.png"]


def test_a_picture_that_another_prompt_shows_too_stays(server: Master, gates: Gates) -> None:
    """It comes out of the worker's cache, and the one that had saved it begins anew elsewhere."""
    share(server, master_computes=True)
    server.run(saved(63))  # by the time it has ended, the master has said that it takes prompts too
    here = server.queue(gates.prompt("busy", 61, cls="TestOnlyHere"))
    gates.wait("busy")
    cached = saved(62, "both")
    cached["3"]["class_type"] = "TestSaver"
    fails = cached | {"2": fault("cpu-0")["2"], "4": save(["2", 0])}
    fails["2"]["inputs"]["image"] = ["3", 0]
    first = server.queue(fails)
    path = server.base / "output" / "both_00001_.png"
    wait_until(path.exists, "the file")
    entry = server.run(cached)
    assert server.files(entry, "3") == [path]
    gates.open("busy")
    for prompt_id in (here, first):
        assert server.finish(prompt_id)["status"]["status_str"] == "success"
    assert path.exists()


def test_a_number_that_has_no_place_runs_all_the_same(server: Master) -> None:
    share(server)
    for number in (float("nan"), float("inf")):
        answer = server.post("/prompt", {"prompt": saved(10), "number": number})
        assert server.finish(answer["prompt_id"])["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    "given",
    ["a/b?c#d%2Fe f\u00e9", "..", "", "x" * 10_000],
    ids=["of all characters", "parent", "empty", "long"],
)
def test_a_prompt_may_have_any_id(server: Master, given: str) -> None:
    share(server)

    def health() -> tuple[int, str]:
        (worker,) = server.get("/comfyfleet/v1/status")["workers"]
        return worker["restarts"], worker["last_error"]

    before = health()
    try:
        server.post("/prompt", {"prompt": saved(50), "prompt_id": given})
    except urllib.error.HTTPError as error:
        assert error.code == 400 and "must be a UUID" in error.read().decode()
        pytest.skip("this ComfyUI takes UUIDs only")
    entry = wait_until(lambda: server.get("/history").get(given), "the prompt")
    assert entry["status"]["status_str"] == "success"
    assert health() == before


@pytest.mark.parametrize("prompt_id", [["x"], {"x": 1}, 7, "none"])
def test_an_interrupt_of_what_is_no_prompt_stops_nothing(
    server: Master, gates: Gates, prompt_id: object
) -> None:
    share(server)
    held = server.queue(gates.prompt("stays", 11))
    gates.wait("stays")
    server.post("/interrupt", {"prompt_id": prompt_id})
    gates.open("stays")
    assert server.finish(held)["status"]["status_str"] == "success"
