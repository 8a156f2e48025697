"""How a gang finds together, over the file that a fleet has on a disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import FileStore

from comfyfleet.errors import InputError
from comfyfleet.parallel.comm import Place
from comfyfleet.parallel.roster import (
    Ticket,
    announce,
    call_up,
    is_ready,
    new_gang,
    store_of,
    take_place,
)

CPU = torch.device("cpu")
TICKET = Ticket(gang="gang-0123456789ab", name="worker 1", shape=(1, 16, 5, 8, 8))


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    found = FileStore(str(tmp_path / "gang"), -1)
    found.set_timeout(timedelta(seconds=60))
    return found


def test_a_ticket_is_read_as_it_was_written():
    assert Ticket.from_json(TICKET.to_json()) == TICKET


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "1", "null", '"text"', "{}", '{"gang": "a", "name": "b"}',
     '{"gang": "a", "name": "b", "shape": 1}'],
)  # fmt: skip
def test_what_is_no_ticket_is_refused(text: str):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Ticket.from_json(text)


def test_a_ticket_may_have_more_than_we_read():
    written = json.loads(TICKET.to_json()) | {"of a later version": 1}
    assert Ticket.from_json(json.dumps(written)) == TICKET


def test_gangs_meet_in_files_of_their_own_below_a_folder(tmp_path: Path):
    first, second = new_gang(), new_gang()
    announce(store_of(tmp_path, first), "a")
    assert is_ready(store_of(tmp_path, first), "a")
    assert not is_ready(store_of(tmp_path, second), "a")
    assert {path.name for path in tmp_path.iterdir()} == {first, second}


@pytest.mark.parametrize(
    "gang", ["", "gang-1", "../gang-0123456789ab", "/etc/passwd", "gang-0123456789ab/x"]
)
def test_a_path_is_no_gang(tmp_path: Path, gang: str):
    with pytest.raises(InputError, match="no gang is called"):
        store_of(tmp_path, gang)
    assert not list(tmp_path.iterdir())


def test_followers_announce_themselves(store: FileStore):
    assert not is_ready(store, "a")
    announce(store, "a")
    assert is_ready(store, "a") and not is_ready(store, "b")


def test_who_is_called_up_gets_a_place_and_others_go_home(store: FileStore):
    call_up(store, ["b", "a"], "gloo")
    places = [take_place(store, name, CPU) for name in ("a", "b", "c")]
    assert places == [
        Place(rank=2, size=3, device=CPU, backend="gloo"),
        Place(rank=1, size=3, device=CPU, backend="gloo"),
        None,
    ]


def test_nobody_may_be_called_up(store: FileStore):
    call_up(store, [], "gloo")
    assert take_place(store, "a", CPU) is None


def test_the_leader_s_backend_holds(store: FileStore):
    call_up(store, ["a"], "nccl")
    place = take_place(store, "a", torch.device("cuda:1"))
    assert place is not None and (place.backend, place.device) == ("nccl", torch.device("cuda:1"))


def test_a_follower_waits_for_the_leader_s_word(tmp_path: Path, store: FileStore):
    """Each side opens the file for itself, as processes do."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take_place, store, "a", CPU)
        call_up(FileStore(str(tmp_path / "gang"), -1), ["a"], "gloo")
        assert waiting.result(timeout=60) == Place(rank=1, size=2, device=CPU)
