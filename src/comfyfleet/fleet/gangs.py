"""Gangs: idle workers that compute a model's forwards together with this process.

A follower is a worker whose prompt ends in the internal follow node. Dispatch lends it out for one
sampling, so that no unit meets it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed import FileStore, PrefixStore, is_nccl_available

from comfyfleet.errors import ComfyFleetError, LinkLost
from comfyfleet.fleet.fleet import Fleet
from comfyfleet.fleet.loans import Loan
from comfyfleet.parallel.comm import Place, World
from comfyfleet.parallel.roster import Ticket, call_up, is_ready, new_gang, store_of
from comfyfleet.work import Failure, Prompt

logger = logging.getLogger(__name__)

#: How often followers on their way are looked after.
_LOOK_S = 0.01
#: How long followers may take to load the model: the leader goes without those that take longer.
_READY_S = 600.0
#: How long a follower that was lost may take to say why.
_LAST_WORD_S = 3.0


@dataclass(frozen=True, kw_only=True)
class GangRequest:
    """What a leader wants.

    ``prompt_of`` makes the prompt that ends in the follow node; ``weights`` says how much the
    leader ("") and each worker gets: workers that are not named are not wanted. ``check`` raises
    to give up waiting.
    """

    prompt_of: Callable[[Ticket], Prompt]
    shape: tuple[int, ...]
    device: torch.device
    weights: Mapping[str, float]
    check: Callable[[], None]


class Gang:
    """Workers that follow this process for one sampling. Its methods are for one thread."""

    def __init__(self, fleet: Future[Fleet], request: GangRequest) -> None:
        self._request = request
        self._fleet = fleet
        self._lent: Future[list[Loan]] = Future()
        self._closed = threading.Event()
        self._name = new_gang()
        self._folder = Path()
        #: Those who take part, in rank order after the leader.
        self._members: list[Loan] = []
        self._loans: list[Loan] = []
        self._note = ""
        fleet.add_done_callback(self._lend)

    def ready(self) -> World | None:
        """Wait until every worker that is free is ready or has failed; None if none is ready.

        Raises what the request's ``check`` raises.
        """
        self._wait(self._lent.done)
        try:
            loans = self._loans = self._lent.result()
        except ComfyFleetError as error:
            self._note = str(error)
            return None
        store = self._store()
        self._wait(lambda: all(_settled(store, loan) for loan in loans), _READY_S)
        came = [loan for loan in loans if is_ready(store, loan.worker.id)]
        self._members = [loan for loan in came if not loan.end.done()]
        self._note = self._missing(loans)
        return self._call_up(store) if self._members else None

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each rank gets, when ready."""
        ids = ["", *(loan.worker.id for loan in self._members)]
        return tuple(self._request.weights[worker_id] for worker_id in ids)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each rank, when ready."""
        return str(self._request.device), *(loan.worker.device for loan in self._members)

    @property
    def note(self) -> str:
        """Why it is smaller than it could be; empty if it is not."""
        return self._note

    def explain(self, error: LinkLost) -> str:
        """Which follower was lost and what it said; or where each is, if none is lost."""
        pause = threading.Event()
        for _ in range(int(_LAST_WORD_S / _LOOK_S)):
            if self._culprits():
                break
            pause.wait(_LOOK_S)
        lost = self._culprits() or [loan for loan in self._members if loan.end.done()]
        for loan in lost:
            logger.warning("%s was lost: %s", loan.worker.id, loan.failure)
        told = [f"{loan.worker.id} was lost: {_sentence(loan.failure)}" for loan in lost]
        return " ".join(told) or "\n".join([str(error), *(m.state for m in self._members)])

    def _culprits(self) -> list[Loan]:
        """Those who ended by themselves, and not because another had left them."""
        ended = [(loan, loan.failure) for loan in self._members]
        return [loan for loan, why in ended if why and LinkLost.__name__ not in why.message]

    @property
    def exhausted(self) -> list[str]:
        """Workers that stopped because their memory did not suffice."""
        failures = ((loan.worker.id, loan.failure) for loan in self._loans)
        return [who for who, why in failures if why is not None and why.kind == "out_of_memory"]

    def close(self) -> None:
        """Let the followers go, ready or not; returns at once."""
        self._closed.set()
        if not self._lent.done() or self._lent.exception() is not None:
            return
        self._dismiss([loan for loan in self._lent.result() if loan not in self._members])
        self._tidy()

    def _lend(self, coming: Future[Fleet]) -> None:
        """The fleet is up, or will not be. On any thread."""
        try:
            fleet, wanted = coming.result(), [name for name in self._request.weights if name]
            self._folder = fleet.folder
            self._store()  # makes the file: without it followers take the gang for gone
            self._lent.set_result(fleet.lend(wanted, self._prompt_of))
        except BaseException as error:
            self._lent.set_exception(error)
            return
        for loan in self._lent.result():
            loan.end.add_done_callback(lambda _: self._tidy())
        if self._closed.is_set():
            self._dismiss(self._lent.result())
            self._tidy()

    def _tidy(self) -> None:
        """Remove the file in which the ranks met, when nobody can come any more."""
        if self._closed.is_set() and all(loan.end.done() for loan in self._lent.result()):
            (self._folder / self._name).unlink(missing_ok=True)

    def _prompt_of(self, worker_id: str) -> Prompt:
        shape = tuple(self._request.shape)
        return self._request.prompt_of(Ticket(gang=self._name, name=worker_id, shape=shape))

    def _store(self) -> FileStore:
        return store_of(self._folder, self._name)

    def _call_up(self, store: FileStore) -> World:
        for loan in self._members:
            loan.relied_on = True
        backend = self._backend()
        call_up(store, [loan.worker.id for loan in self._members], backend)
        size = 1 + len(self._members)
        place = Place(rank=0, size=size, device=self._request.device, backend=backend)
        world = World(PrefixStore("world", store), place, self._lost)
        for loan in self._members:
            loan.end.add_done_callback(lambda _: world.abort())
        return world

    def _lost(self) -> bool:
        return any(loan.end.done() for loan in self._members)

    def _backend(self) -> str:
        """NCCL where each rank has a GPU of its own, gloo otherwise."""
        gpus = {device for device in self.devices if device.startswith("cuda")}
        return "nccl" if len(gpus) == len(self.devices) and is_nccl_available() else "gloo"

    def _dismiss(self, loans: list[Loan]) -> None:
        """Send home who has no place in the gang: some wait for their place, some still load."""
        if loans and not self._members:
            call_up(self._store(), [], "gloo")
        for loan in loans:
            self._fleet.result().recall(loan)

    def _missing(self, loans: list[Loan]) -> str:
        came = {loan.worker.id for loan in loans}
        busy = [name for name in self._request.weights if name and name not in came]
        ended = [loan for loan in loans if loan.end.done()]
        for loan in ended:
            logger.warning("%s failed: %s", loan.worker.id, loan.failure)
        failed = [f"{loan.worker.id} failed: {_sentence(loan.failure)}" for loan in ended]
        late = [
            f"{loan.worker.id} was not ready after {_READY_S:.0f} s."
            for loan in loans
            if loan not in self._members and not loan.end.done()
        ]
        return " ".join([*(f"{name} is busy or gone." for name in busy), *failed, *late])

    def _wait(self, condition: Callable[[], bool], timeout_s: float = math.inf) -> None:
        pause, end = threading.Event(), time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end:
            self._request.check()
            pause.wait(_LOOK_S)


def _sentence(failure: Failure | None) -> str:
    """What a follower said, without the traceback; that is in the log."""
    said = "it left" if failure is None else str(replace(failure, traceback=""))
    return f"{said.strip().rstrip('.')}."


def _settled(store: FileStore, loan: Loan) -> bool:
    return loan.end.done() or is_ready(store, loan.worker.id)
