"""What a unit needs on a node of a cluster: asked before it is sent, and its input files sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from comfyfleet.client.background import in_background
from comfyfleet.client.files import Files, read_piece
from comfyfleet.client.inventory import in_words
from comfyfleet.errors import InputError, Unfit
from comfyfleet.work import Failure, Prompt

#: Calls a method of the worker's actor.
Call = Callable[..., Awaitable[Any]]


class Supplies:
    """For all nodes of one fleet, whose owner's folders these are."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._files = Files(folders)

    async def send(
        self, node: str, prompt: Prompt, call: Call, wanted: Callable[[], bool] = lambda: True
    ) -> dict[str, Mapping[str, Any]]:
        """The prompt as it can run on the node, its files there; ``wanted``: is it still?

        Raises Unfit with what the node lacks, InputError if a file cannot be read or kept.
        """
        try:
            parcel = await self._files.pack(prompt)
            adapted, lacking = await call("fitted", parcel.prompt, parcel.names)
            if lacking:
                raise Unfit(f"{node} lacks {in_words(lacking)}")
            for name, path in parcel.files.items():
                await _send(name, path, call, wanted)
        except OSError as error:
            raise InputError(f"an input file cannot be read: {error}.") from error
        found: dict[str, Mapping[str, Any]] = adapted
        return found


async def _send(name: str, path: Path, call: Call, wanted: Callable[[], bool]) -> None:
    size = path.stat().st_size
    there = _counted(await call("take", name, size, 0, b""))
    while there < size and wanted():
        piece = await in_background(read_piece, path, there)
        if not piece:
            raise InputError(f"{path} became shorter while it was sent; run it again.")
        there = _counted(await call("take", name, size, there, piece))


def _counted(answer: int | Failure) -> int:
    """Raises Unfit if the node cannot keep it: another may."""
    if isinstance(answer, Failure):
        raise Unfit(answer.message)
    return answer
