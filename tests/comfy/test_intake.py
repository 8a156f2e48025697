"""Models that come in pieces: real files, broken off, damaged, too large."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from comfyfleet.client.digests import Digests
from comfyfleet.comfy.intake import Incoming, Intake
from comfyfleet.errors import InputError

DATA = bytes(range(256)) * 40
OPEN = {"start": 0, "state": "open"}
WHOLE = {"start": len(DATA), "state": "whole"}
T = TypeVar("T")


def incoming(folder: Path, data: bytes = DATA, name: str = "sub/a model.sft") -> Incoming:
    digest = hashlib.sha256(data).hexdigest()
    return Incoming(path=folder / "models" / name, size=len(data), sha256=digest)


class Here:
    """An intake, and how often ComfyUI was told of something new."""

    def __init__(self, folder: Path) -> None:
        self.new = 0
        self.intake = Intake(Digests(folder / "digests.json"), self._on_new)

    def _on_new(self) -> None:
        self.new += 1

    async def checked(self, wanted: Incoming) -> dict[str, Any]:
        """The state once nothing is being read."""
        while (found := await self.intake.state(wanted))["state"] == "checking":
            await asyncio.sleep(0)
        return found


def in_loop(work: Callable[[Here], Awaitable[T]], folder: Path) -> T:
    async def run() -> T:
        return await asyncio.wait_for(_awaited(work(Here(folder))), 120)

    return asyncio.run(run())


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def test_pieces_become_a_model(tmp_path: Path) -> None:
    wanted = incoming(tmp_path)

    async def work(here: Here) -> None:
        assert await here.intake.state(wanted) == OPEN
        half = await here.intake.add(wanted, 0, DATA[:5000])
        assert half == {"start": 5000, "state": "open"}
        assert not wanted.path.exists()
        await here.intake.add(wanted, 5000, DATA[5000:])
        assert await here.checked(wanted) == WHOLE
        assert here.new == 1

    in_loop(work, tmp_path)
    assert wanted.path.read_bytes() == DATA
    assert list(wanted.path.parent.iterdir()) == [wanted.path]


def test_after_a_restart_it_goes_on(tmp_path: Path) -> None:
    wanted = incoming(tmp_path)
    in_loop(lambda here: here.intake.add(wanted, 0, DATA[:777]), tmp_path)

    state = in_loop(lambda here: here.intake.state(wanted), tmp_path)
    assert state == {"start": 777, "state": "open"}
    with wanted.part.open("ab") as file:
        file.write(DATA[777:])  # all has come, and it ended before that was checked
    assert in_loop(lambda here: here.checked(wanted), tmp_path) == WHOLE
    assert wanted.path.read_bytes() == DATA


def test_bytes_that_are_not_the_next_ones_change_nothing(tmp_path: Path) -> None:
    """Two who send the same, or one whose answer was lost."""
    wanted = incoming(tmp_path)

    async def work(here: Here) -> None:
        first = here.intake.add(wanted, 0, DATA[:100])
        second = here.intake.add(wanted, 0, DATA[:100])
        assert await asyncio.gather(first, second) == [{"start": 100, "state": "open"}] * 2
        assert (await here.intake.add(wanted, 200, DATA[200:300]))["start"] == 100
        assert (await here.intake.add(wanted, 100, b""))["start"] == 100
        with pytest.raises(InputError, match="are beyond"):
            await here.intake.add(wanted, 100, DATA)

    in_loop(work, tmp_path)
    assert wanted.part.read_bytes() == DATA[:100]


def test_what_is_damaged_is_refused_once_and_can_come_again(tmp_path: Path) -> None:
    wanted = incoming(tmp_path)

    async def work(here: Here) -> None:
        await here.intake.add(wanted, 0, b"x" + DATA[1:])
        with pytest.raises(InputError, match=r"a model.sft arrived damaged; copy it again"):
            await here.checked(wanted)
        assert await here.intake.state(wanted) == OPEN
        assert here.new == 0

    in_loop(work, tmp_path)
    assert list(wanted.path.parent.iterdir()) == []


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    wanted = incoming(tmp_path)
    wanted.path.parent.mkdir(parents=True)
    wanted.path.write_bytes(DATA)
    assert in_loop(lambda here: here.checked(wanted), tmp_path) == WHOLE  # put there by hand
    for other in (DATA[:-1], DATA[:-1] + b"!"):
        with pytest.raises(InputError, match="is there already, with other content"):
            in_loop(lambda here, data=other: here.checked(incoming(tmp_path, data)), tmp_path)
    assert wanted.path.read_bytes() == DATA


def test_a_file_for_which_there_is_no_room_is_not_begun(tmp_path: Path) -> None:
    huge = Incoming(path=tmp_path / "a.gguf", size=1 << 44, sha256="0" * 64)
    with pytest.raises(InputError, match=r"the disk there is too full .* 17592\.2 GB are needed"):
        in_loop(lambda here: here.intake.add(huge, 0, b"x"), tmp_path)
    assert not huge.part.exists()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk that has room for no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_becomes_full_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    wanted = incoming(tmp_path)
    with (
        files_up_to(4096),
        pytest.raises(InputError, match=r"cannot be kept there: File too large"),
    ):
        in_loop(lambda here: here.intake.add(wanted, 0, DATA), tmp_path)
    assert wanted.part.read_bytes() == DATA[:4096]

    async def rest(here: Here) -> dict[str, Any]:
        await here.intake.add(wanted, 4096, DATA[4096:])
        return await here.checked(wanted)

    assert in_loop(rest, tmp_path) == WHOLE
