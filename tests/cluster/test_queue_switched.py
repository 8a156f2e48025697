"""A shared queue while it is switched, interrupted at once, or asked for something odd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.queue_bed.bed import PACK, Gates, queued, saved, share, unshare
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
    held = server.queue(gates.prompt("held", 4))
    gates.wait("held")
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
    theirs = server.queue(gates.prompt("theirs", 7))
    gates.wait("theirs")
    unshare(server)
    ours = server.queue(gates.prompt("ours", 8))
    gates.wait("ours")
    server.post("/interrupt", {"prompt_id": theirs})
    assert server.finish(theirs, 10)["status"]["status_str"] == "error"
    gates.open("ours", "theirs")
    assert server.finish(ours)["status"]["status_str"] == "success"


def test_an_interrupt_at_once_frees_the_worker(server: Master, gates: Gates) -> None:
    share(server)
    for number in range(20):
        prompt_id = server.queue(gates.prompt(f"g{number}", number))
        wait_until(lambda at=prompt_id: at in queued(server)[0], "it to run")
        server.post("/interrupt", {"prompt_id": prompt_id})
        assert server.finish(prompt_id, 10)["status"]["status_str"] == "error"
    server.run(saved(9))  # the only worker has nothing else in hand


def test_a_number_that_has_no_place_runs_all_the_same(server: Master) -> None:
    share(server)
    for number in (float("nan"), float("inf")):
        answer = server.post("/prompt", {"prompt": saved(10), "number": number})
        assert server.finish(answer["prompt_id"], 20)["status"]["status_str"] == "success"
