"""A leader in this process and followers in processes of their own, one thread each."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore

from benchmarks.models import build
from comfyfleet.parallel.comm import Place, World
from comfyfleet.parallel.gang import Follower, Leader

ROUNDS = 7


@contextmanager
def leader_of(family: str, num_ranks: int) -> Iterator[Leader]:
    """A leader whose followers hold the family's model."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        followers = [
            context.Process(target=_follow, args=(store, family, rank, num_ranks))
            for rank in range(1, num_ranks)
        ]
        for follower in followers:
            follower.start()
        leader = Leader(World(FileStore(store, num_ranks), _place(0, num_ranks)))
        try:
            yield leader
        finally:
            leader.close()
            for follower in followers:
                follower.join(30)


def _follow(store: str, family: str, rank: int, num_ranks: int) -> None:
    torch.set_num_threads(1)
    model, _ = build(family)
    with torch.inference_mode():
        Follower(World(FileStore(store, num_ranks), _place(rank, num_ranks)), model).serve()


def _place(rank: int, size: int) -> Place:
    return Place(rank=rank, size=size, device=torch.device("cpu"))


@torch.inference_mode()
def compare(alone: Callable[[], Tensor], together: Callable[[], Tensor]) -> dict[str, Any]:
    """Alternate the two ways after a warm-up; ``ratio`` is of their median times."""
    whole, split = alone(), together()
    taken: dict[Callable[[], Tensor], list[float]] = {alone: [], together: []}
    for _ in range(ROUNDS):
        for way, seconds in taken.items():
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
    return {
        "seconds_1_rank": _rounded(taken[alone]),
        "seconds_all_ranks": _rounded(taken[together]),
        "ratio": round(median(taken[alone]) / median(taken[together]), 3),
        "rel_err": ((split - whole).norm() / whole.norm()).item(),
    }


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in seconds]
