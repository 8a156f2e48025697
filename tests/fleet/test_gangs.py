"""A gang whose leader has gone before its followers were asked: nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyfleet.fleet.gangs import Gang, GangRequest
from comfyfleet.fleet.loans import Loan
from comfyfleet.work import Failure, Prompt, Unit, WorkerInfo


class Lender:
    """What a gang asks of a fleet. Each loan ends when it is recalled, or with ``end`` at once."""

    def __init__(self, folder: Path, names: Sequence[str], end: Failure | None) -> None:
        self.folder = folder
        self._loans = [loan(name) for name in names]
        self._end = end

    def lend(self, names: Sequence[str], prompt_of: Callable[[str], Prompt]) -> list[Loan]:
        if self._end is not None:
            for each in self._loans:
                each.end.set_result(self._end)
        return self._loans

    def recall(self, loan: Loan) -> None:
        if not loan.end.done():
            loan.end.set_result(None)


def loan(name: str) -> Loan:
    info = {"device": "cpu", "device_name": "", "pid": 0, "comfyui_version": "", "log_file": ""}
    return Loan(WorkerInfo(id=name, **info), Unit(run_id="run", index=0, prompt={}))


@pytest.mark.parametrize("names", [[], ["cpu-0"], ["cpu-0", "cpu-1"]])
@pytest.mark.parametrize("end", [None, Failure(message="its process ended")])
def test_a_gang_that_is_closed_before_its_fleet_is_there_leaves_no_file(
    tmp_path: Path, names: list[str], end: Failure | None
):
    """The user stops the prompt while the fleet starts; its workers may be busy, or fail."""
    coming: Future[Any] = Future()
    weights = dict.fromkeys(["", *names], 1.0)
    gang = Gang(
        coming,
        GangRequest(
            prompt_of=lambda ticket: {},
            shape=(1, 4, 8, 8),
            device=torch.device("cpu"),
            weights=weights,
            check=lambda: None,
        ),
    )
    gang.close()
    coming.set_result(Lender(tmp_path, names, end))
    assert not list(tmp_path.iterdir())
