"""When a worker that is away is asked again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from comfyfleet.errors import WorkerStartError
from comfyfleet.fleet import care as module
from comfyfleet.fleet.care import Care
from comfyfleet.fleet.loop import Loop
from comfyfleet.work import Dispatch, Event, WorkerJoined


class Away:
    """Stands for the fleet's workers: one elsewhere that comes when it is asked again."""

    def __init__(self) -> None:
        self.ids = self.remote_ids = ["far"]
        self.infos: dict[str, Any] = {"near": None}
        self.is_asked, self.may_answer = threading.Event(), threading.Event()
        self._tries = 0

    def is_remote(self, worker_id: str) -> bool:
        return True

    async def restart(self, worker_id: str) -> None:
        self._tries += 1
        self.is_asked.set()
        await asyncio.to_thread(self.may_answer.wait, 60)
        if self._tries == 1:
            raise WorkerStartError("nobody there")
        self.infos[worker_id] = None

    async def lost(self, worker_id: str) -> str:
        await asyncio.Event().wait()
        return ""


@pytest.mark.parametrize("ask", [Care.hurry, Care.restart])
def test_who_is_called_for_while_it_is_asked_is_asked_again_at_once(
    ask: Callable[[Care, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that dials in anew while its old line is just found to be dead."""
    monkeypatch.setattr(module, "BACK_OFF_S", (3600.0, 3600.0))
    away, has_joined, is_over = Away(), threading.Event(), asyncio.Event()

    def handle(event: Event) -> None:
        if isinstance(event, WorkerJoined):
            has_joined.set()

    async def main() -> None:
        care = Care(away, Dispatch(), loop, handle, lambda: None)  # type: ignore[arg-type]
        care.seek("far")
        await asyncio.to_thread(away.is_asked.wait, 60)
        ask(care, "far")
        await asyncio.sleep(0)  # what was posted comes first
        away.may_answer.set()
        await is_over.wait()

    loop = Loop(main, lambda error: None)
    loop.start()
    try:
        assert has_joined.wait(60), "it is asked again an hour later"
    finally:
        loop.post(is_over.set)
        loop.join(60)
