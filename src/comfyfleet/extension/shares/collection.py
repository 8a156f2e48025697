"""A collection: what one execution of a collector has begun, from its first question to its end.

A collector is asked for its lazy inputs before anything upstream of it runs. At that moment its
other shares go to the fleet; the master's own share follows as usual. ``execute`` then waits for
the rest, and the master takes further shares meanwhile: those that the fleet has not been given
yet because it is starting, and later those that dispatch offers.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from comfyfleet.comfy import shipped
from comfyfleet.comfy.values import pack
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.extension.shares.pieces import Pieces
from comfyfleet.extension.shares.shipping import Cargo, Plan
from comfyfleet.fleet import Delivery, Fleet, Run
from comfyfleet.graph import Link, as_link, part_of_slices, stand_in
from comfyfleet.work import OutputFile, Packed, Result, Unit

logger = logging.getLogger(__name__)

#: How long one wait lasts before the user's cancel button is looked at again.
_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a collector asks for: its linked inputs, how many shares, who computes."""

    node_id: str
    inputs: Mapping[str, Link]
    shares: int
    #: The master has no first share, with which it would begin.
    delegate: bool
    #: It takes no further one, unless no worker can compute them: its owner wants it so.
    spared: bool = False
    #: What an output gives whose input is not connected, where that is no error.
    absent: Mapping[str, Any] = field(default_factory=dict)


#: What cannot leave this process -> what is computed here before units can be made.
Planner = Callable[[set[Link]], Plan]


class Collection:
    """Shares that this process has, and the run of the others.

    Its units are known when the values of its plan are. Without ``hand_over`` (no workers, or
    inside a worker) this process computes all shares.
    """

    def __init__(self, request: Request, prompt: Mapping[str, Any], planner: Planner) -> None:
        self.id = uuid.uuid4().hex
        self.request = request
        self.prompt = prompt
        #: Values that cannot leave this process although their types can.
        self.refused: set[Link] = set()
        self._planner = planner
        self.plan = planner(self.refused)
        #: True when the values of the plan are known, and the units that need them.
        self.begun = False
        self._own: dict[int, Packed] = {}
        self._mine = set() if request.delegate else {0}
        self._lock = threading.Lock()
        self._left: deque[Unit] = deque()
        self._run: Future[Run] | None = None
        self._joined = False
        #: Does this process take shares besides its first?
        self._takes = not request.delegate and not request.spared
        self._shares = 0
        self._pieces: Pieces | None = None
        #: True if shares, the first too, are made of slices.
        self.is_sliced = False
        #: Where the inputs of a share come from.
        self.links = dict(request.inputs)

    def refuse(self, link: Link) -> None:
        """Plan anew, as the value of this link cannot leave the process."""
        self.refused.add(link)
        self.plan = self._planner(self.refused)

    def cut(self, cargo: Cargo) -> None:
        """Let slices stand for the outputs of Fleet Splits."""
        self.is_sliced = bool(cargo.slices)
        self.prompt = stand_in(self.prompt, cargo.slices)
        self.links = linked(self.prompt[self.request.node_id], tuple(self.request.inputs))
        shipped.hold(self.id, cargo.values if cargo.slices else {})

    def begin(self, pieces: Pieces, units: Sequence[Unit]) -> None:
        """Set the shares besides the one that this process has."""
        self._pieces = pieces
        self._left = deque(units)
        self._shares = len(units) + len(self._mine)
        self.begun = True

    def end(self) -> None:
        """Let go of what was kept for shares of this process."""
        shipped.drop(self.id)

    def hand_over(self, fleet: Future[Fleet]) -> None:
        """Give the fleet, when it is ready, all shares that this process has not begun by then."""
        self._run = Future()
        fleet.add_done_callback(self._submit)

    def _submit(self, ready: Future[Fleet]) -> None:
        assert self._run is not None
        try:
            fleet = ready.result()
            units = self._units_for(fleet)
            self._run.set_result(fleet.submit(units, halve=self.pieces.halve))
        except BaseException as error:
            self._takes = self._takes or self.request.spared
            self._run.set_exception(error)

    def _units_for(self, fleet: Fleet) -> list[Unit]:
        """What the fleet shall compute: nothing, if its workers lack nodes of ours."""
        with self._lock:
            classes = {node["class_type"] for each in self._left for node in each.prompt.values()}
            missing = sorted(classes - fleet.node_classes)
            if not missing:
                units, self._left = list(self._left), deque()
                return units
        lacking = f"no worker has the node class(es) {', '.join(missing)}"
        if self.request.delegate and not self.request.spared:
            raise InputError(f"{lacking}: let the master compute it, or install their pack there.")
        logger.warning("node %s: %s; the master computes all", self.request.node_id, lacking)
        self._joined = self._takes = True  # there is no run to take part in
        return []

    @property
    def pieces(self) -> Pieces:
        """What its units are of; only when begun."""
        assert self._pieces is not None
        return self._pieces

    @property
    def shares(self) -> int:
        """How many results make it complete: one for each share, or for each part of one."""
        return self._shares + (self._pieces.num_halved if self._pieces else 0)

    def seen_by(self, share: int) -> tuple[Mapping[str, Any], int]:
        """The prompt for a share, or part of one, of this process; and the share's number."""
        half = self.pieces.find_half(share)
        if half is None:
            return self.prompt, share
        return part_of_slices(self.prompt, half.first, half.last), half.share

    def next_share(self) -> int | None:
        """Wait a moment for a share that this process shall compute; None if there is none now.

        It may be a part of a share: see ``seen_by``.
        """
        with self._lock:
            if self._left and self._takes:
                share = self._left.popleft().index
                self._mine.add(share)
                return share
        return self._offered()

    def _offered(self) -> int | None:
        if self._run is None:
            return None
        try:
            run = self._run.result(_WAIT_S)
        except NotYet:
            return None
        except ComfyFleetError:
            if self._left and self._takes:
                return None  # since a moment: it is all for this process
            raise
        if not self._joined and self._takes:
            self._joined = True
            run.join_local()
        unit = run.next_local(_WAIT_S)
        return None if unit is None else unit.index

    def add_local(self, share: int, values: Mapping[str, list[Any]]) -> None:
        """Hand in a share that this process computed."""
        packed = pack(dict(values), f"share {share}")
        if share in self._mine:
            self._own[share] = packed
            return
        assert self._run is not None
        run = self._run.result()
        run.finish_local(Unit(run_id=run.id, index=share, prompt={}), Result(values=packed))

    @property
    def complete(self) -> bool:
        """True when all shares are here. Raises what the fleet or the run failed with."""
        if self._all_own:
            return True
        if self._left:
            return False
        return self._run is not None and self._run.done() and self._run.result().wait(0)

    @property
    def _all_own(self) -> bool:
        """True if this process has computed everything, perhaps before the fleet was ready."""
        return len(self._own) == self.shares

    @property
    def num_collected(self) -> int:
        """How many shares are here."""
        run = self._run
        elsewhere = run.result().deliveries if run and run.done() and not run.exception() else ()
        return len(self._own) + len(elsewhere)

    @property
    def cancelled(self) -> bool:
        """True if somebody has stopped what others compute of it."""
        run = self._run
        return bool(run and run.done() and not run.exception() and run.result().cancelled)

    @property
    def is_blocked(self) -> bool:
        """True if what was computed elsewhere came to nothing: a node upstream blocked it."""
        deliveries = self._run.result().results() if self._run else ()
        return any(each.result.values is None for each in deliveries)

    def values(self) -> list[Packed]:
        """What each share, or part of one, gave, in share order; only when complete."""
        return list(self._arrived().values())

    def parts(self) -> list[int | None]:
        """Of each of ``values`` how many items of its share it is of; None for all of them."""
        halves = map(self.pieces.find_half, self._arrived())
        return [None if half is None else half.last - half.first for half in halves]

    def _arrived(self) -> dict[int, Packed]:
        elsewhere = [] if self._all_own or not self._run else self._run.result().results()
        shares = {**self._own, **{each.unit.index: _packed(each) for each in elsewhere}}
        if len(shares) != self.shares:
            raise ComfyFleetError(f"{len(shares)} of {self.shares} shares arrived.")
        return {index: shares[index] for index in sorted(shares, key=self.pieces.place_of)}

    @property
    def makers(self) -> str:
        """Who has computed which share, but for this process; only when complete."""
        elsewhere = [] if self._all_own or not self._run else self._run.result().results()
        made = [f"{each.unit.index} by {each.worker_id}" for each in elsewhere]
        return f"Shares were computed elsewhere: {', '.join(made)}." if made else ""

    def files(self) -> list[tuple[OutputFile, ...]]:
        """What nodes have saved on workers for each share; only when complete."""
        elsewhere = self._run.result().results() if self._run and not self._all_own else []
        elsewhere.sort(key=lambda delivery: self.pieces.place_of(delivery.unit.index))
        return [delivery.result.files for delivery in elsewhere]

    def cancel(self, reason: str) -> None:
        """Stop what still runs, also if the fleet is only starting."""
        self.end()
        if self._run is not None:
            self._run.add_done_callback(lambda run: _cancel(run, reason))


def linked(node: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Link]:
    """Those of the inputs that are connected, with where they come from."""
    found = {name: as_link(node["inputs"].get(name)) for name in names}
    return {name: link for name, link in found.items() if link is not None}


def _packed(delivery: Delivery) -> Packed:
    if delivery.result.values is None:
        raise ComfyFleetError(f"worker {delivery.worker_id} returned no values for its share.")
    return delivery.result.values


def _cancel(run: Future[Run], reason: str) -> None:
    if run.exception() is None:
        run.result().cancel(reason)
