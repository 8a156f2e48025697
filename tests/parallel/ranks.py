"""Ranks for the tests: threads of this process that exchange real bytes over gloo."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.distributed import HashStore

from comfyfleet.parallel.comm import Place, World

T = TypeVar("T")
MAX_RANKS = 4
#: Of one operation; a rank that is lost is noticed long before.
TIMEOUT_S = 120


class Ranks:
    """Up to four ranks that live as long as the tests; a world of n ranks is made once."""

    def __init__(self) -> None:
        self._pools = [ThreadPoolExecutor(1, f"rank{rank}") for rank in range(MAX_RANKS)]
        self._worlds: dict[int, list[World]] = {}

    def run(self, num_ranks: int, work: Callable[[World], T]) -> list[T]:
        """Call ``work`` on every rank at once; what each returned, or the first error."""
        if num_ranks not in self._worlds:
            self._worlds[num_ranks] = _make_worlds(num_ranks)
        worlds = self._worlds[num_ranks]

        def do(world: World) -> T:
            try:
                with torch.inference_mode():
                    return work(world)
            except BaseException:
                world.close()  # the others see it at once
                raise

        futures = [pool.submit(do, world) for pool, world in zip(self._pools, worlds, strict=False)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if any(world.closed for world in worlds):
            del self._worlds[num_ranks]
        if errors:
            raise next((e for e in errors if "lost the others" not in str(e)), errors[0])
        return [future.result() for future in futures]

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown()
        for worlds in self._worlds.values():
            for world in worlds:
                world.close()


def _make_worlds(num_ranks: int) -> list[World]:
    store = HashStore()
    places = [
        Place(rank=rank, size=num_ranks, device=torch.device("cpu"), timeout_s=TIMEOUT_S)
        for rank in range(num_ranks)
    ]
    return [World(store, place) for place in places]
