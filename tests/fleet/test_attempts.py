"""An interrupt that comes at any moment of a unit's way: real threads and loop, no ComfyUI."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from comfyfleet.fleet.attempts import UnitActor
from comfyfleet.work import Failure, Happening, Packed, Prompt, Result, Unit

UNIT = Unit(run_id="run", index=0, prompt={})


class Endless:
    """Runs until it is stopped; a word that comes before it runs is lost."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._stops: dict[str, asyncio.Event] = {}

    async def run(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: Callable[[float], None],
        values: Mapping[str, Packed],
    ) -> Result:
        self._stops[prompt_id] = asyncio.Event()
        self.begun.set()
        await self._stops[prompt_id].wait()
        raise RuntimeError("stopped")

    async def interrupt(self, prompt_id: str) -> None:
        if prompt_id in self._stops:
            self._stops[prompt_id].set()


class Watched(UnitActor):
    """An actor to which something happens just before its unit begins."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def _work(self, *args: Any) -> Any:
        self.meanwhile()
        return super()._work(*args)


@pytest.fixture
def actor() -> Iterator[Watched]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Watched(loop, Endless())  # type: ignore[arg-type]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def run(actor: UnitActor, found: list[Happening]) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.extend(actor.run(UNIT, {})), daemon=True)
    thread.start()
    return thread


def stopped(actor: UnitActor) -> list[Happening]:
    """What comes of a unit that is interrupted while it runs."""
    found: list[Happening] = []
    thread = run(actor, found)
    assert actor._runner.begun.wait(60)  # type: ignore[attr-defined]
    actor.interrupt(UNIT.id)
    thread.join(60)
    return found


def test_an_interrupt_that_comes_before_the_unit(actor: Watched) -> None:
    actor.interrupt(UNIT.id)
    assert list(actor.run(UNIT, {})) == [Failure(message="interrupted before it began")]


def test_an_interrupt_that_comes_as_the_unit_begins(actor: Watched) -> None:
    asked = threading.Thread(target=actor.interrupt, args=(UNIT.id,), daemon=True)
    actor.meanwhile = asked.start
    found: list[Happening] = []
    thread = run(actor, found)
    thread.join(60)
    assert found == [Failure(message="RuntimeError: stopped")]
    asked.join(60)


def test_an_interrupt_of_a_unit_that_runs(actor: Watched) -> None:
    assert stopped(actor) == [Failure(message="RuntimeError: stopped")]


def test_an_interrupt_is_for_one_attempt(actor: Watched) -> None:
    """The same unit may come again, when others have failed."""
    actor.interrupt(UNIT.id)
    list(actor.run(UNIT, {}))
    assert stopped(actor) == [Failure(message="RuntimeError: stopped")]
