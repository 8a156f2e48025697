"""A leader and its followers compute the forwards of one model together.

The leader (rank 0) decides everything: which degrees, who computes what. It sends each follower
the inputs of its part; followers do nothing but that. Both ends must hold equal weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from comfyfleet.errors import CannotSplit, LinkLost
from comfyfleet.parallel.batch import split_batch
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.engine import sequence_forward
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.plans import find_plan
from comfyfleet.parallel.wire import Letter, Memory, Wire

logger = logging.getLogger(__name__)

#: The method of a diffusion model that computes one step.
Forward: TypeAlias = Callable[..., Tensor]
#: A change of a forward's arguments.
Change: TypeAlias = Callable[[Forward, Call], Call]


def _as_it_is(forward: Forward, call: Call) -> Call:
    return call


@dataclass(frozen=True, slots=True)
class Split:
    """How one forward is computed: the degrees, and how much each rank gets (by rank)."""

    dims: ParallelDims
    weights: tuple[float, ...]

    def batch_weights(self, cfg: int) -> list[float]:
        """The weight of each part of a batch: that of all ranks of its sequence group."""
        return [sum(self.weights_of(self.ranks(i, cfg))) for i in range(self.dims.batch)]

    def weights_of(self, ranks: Sequence[int]) -> tuple[float, ...]:
        """The weights of some ranks."""
        return tuple(self.weights[rank] for rank in ranks)

    def ranks(self, batch: int, cfg: int) -> tuple[int, ...]:
        """The sequence group that computes one part."""
        first = self.dims.rank({"batch": batch, "cfg": cfg})
        return self.dims.peers(first, ("ulysses", "ring"))


@dataclass(frozen=True, slots=True)
class Way:
    """How the ranks of a sequence group compute one forward together; each gets the whole call.

    The first of them must have the whole output. ``check`` raises CannotSplit for a model that it
    does not know.
    """

    check: Callable[[nn.Module], object]
    compute: Callable[[SequenceMesh, nn.Module, Forward, Call], Tensor]


def _check_tokens(model: nn.Module) -> None:
    find_plan(model)


def _by_tokens(mesh: SequenceMesh, model: nn.Module, forward: Forward, call: Call) -> Tensor:
    return sequence_forward(find_plan(model), mesh, model, forward, call)


#: The tokens of a diffusion model, by its plan.
BY_TOKENS = Way(_check_tokens, _by_tokens)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one sequence group computes."""

    split: Split
    ranks: tuple[int, ...]
    call: Call

    def compute(self, way: Way, world: World, model: nn.Module, forward: Forward) -> Tensor:
        if len(self.ranks) == 1:
            return forward(*self.call.args, **self.call.kwargs)
        mesh = SequenceMesh(world, self.split.dims, self.split.weights_of(self.ranks))
        return way.compute(mesh, model, forward, self.call)


class Leader:
    """Rank 0. Its forwards are shared with the followers of its world."""

    def __init__(self, world: World, strip: Change = _as_it_is, way: Way = BY_TOKENS) -> None:
        """``strip`` leaves out of a forward's arguments what followers have or need not have.

        Followers must go the same ``way``.
        """
        self.world = world
        self._strip = strip
        self._way = way
        #: Bytes of tensors that went to followers.
        self.bytes_sent = 0
        self._memory = Memory()
        self._wires = {rank: Wire(world, rank) for rank in range(1, world.place.size)}
        #: Forwards that have begun and not ended well: followers may wait for the rest of them.
        self._unfinished = 0

    def forward(
        self,
        split: Split,
        model: nn.Module,
        forward: Forward,
        call: Call,
        cfg: int = 0,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Tensor:
        """What ``forward(*call.args, **call.kwargs)`` gives, computed by the ranks of ``cfg``.

        ``forward`` is a method of ``model``; followers call theirs of the same name. Other threads
        may call this for another ``cfg`` inside ``waiting()``, which is entered while a follower's
        result is awaited. Raises CannotSplit, or Unsendable before anything is sent (the gang
        stays usable); LinkLost (it does not).
        """
        if split.dims.sequence > 1:
            self._way.check(model)
        whole = split_batch(call, split.batch_weights(cfg)) if split.dims.batch > 1 else None
        calls = [call] if whole is None else whole.calls
        parts = [
            None if part is None else _Part(split, split.ranks(i, cfg), part)
            for i, part in enumerate(calls)
        ]
        orders = [order for part in parts if part for order in self._orders(part, forward)]
        self._unfinished += 1
        self.bytes_sent += sum(self._wires[rank].send(letter) for rank, letter in orders)
        outputs = [self._find(part, model, forward, waiting) for part in parts]
        self._unfinished -= 1
        for output in outputs:
            if isinstance(output, CannotSplit):
                raise output
        found = [output for output in outputs if not isinstance(output, CannotSplit)]
        out = found[0] if whole is None else whole.join(found)
        assert out is not None
        return out

    def close(self) -> None:
        """Let the followers go, and drop the connections: who still computes learns it so."""
        try:
            for wire in self._wires.values() if not self._unfinished else ():
                wire.send(Letter.of({"do": "end"}))
        except LinkLost:
            logger.debug("a follower was gone before the end", exc_info=True)
        self.world.close()

    def _orders(self, part: _Part, forward: Forward) -> list[tuple[int, Letter]]:
        """What each follower of a part needs."""
        followers = [rank for rank in part.ranks if rank]
        if not followers:
            return []
        call = self._strip(forward, part.call)
        message = {
            "do": "forward",
            "forward": forward.__name__,
            "degrees": dict(part.split.dims.degrees),
            "weights": list(part.split.weights),
            "ranks": list(part.ranks),
            "args": call.args,
            "kwargs": dict(call.kwargs),
        }
        letter = Letter.of(message, self._memory)
        return [(rank, letter) for rank in followers]

    def _find(
        self,
        part: _Part | None,
        model: nn.Module,
        forward: Forward,
        waiting: Callable[[], AbstractContextManager[object]],
    ) -> Tensor | CannotSplit | None:
        """The output of one part, or why it cannot be split. Nothing stays unread on a wire."""
        if part is None:
            return None
        if 0 in part.ranks:
            try:
                return part.compute(self._way, self.world, model, forward)
            except CannotSplit as error:
                return error
        with waiting():
            answer = self._wires[part.ranks[0]].receive()
        return answer["output"] if answer["error"] is None else CannotSplit(answer["error"])


class Follower:
    """Any other rank: does what the leader asks, until it lets go.

    ``prepare`` completes the arguments of a forward with what only this process has.
    """

    def __init__(
        self,
        world: World,
        model: nn.Module,
        prepare: Change = _as_it_is,
        way: Way = BY_TOKENS,
    ) -> None:
        self._way = way
        self._world = world
        self._model = model
        self._prepare = prepare
        self._wire = Wire(world, 0)

    def serve(self) -> int:
        """Compute until the leader ends it; the number of forwards. Raises LinkLost.

        After any other error the connections are closed, so that no rank waits for this one.
        """
        count = 0
        try:
            while (message := self._wire.receive())["do"] != "end":
                self._compute(message)
                count += 1
        finally:
            self._world.close()
        return count

    def _compute(self, message: dict[str, Any]) -> None:
        split = Split(ParallelDims(**message["degrees"]), tuple(message["weights"]))
        forward = getattr(self._model, message["forward"])
        call = self._prepare(forward, Call(message["args"], message["kwargs"]))
        part = _Part(split, tuple(message["ranks"]), call)
        answer: dict[str, Any] = {"output": None, "error": None}
        try:
            answer["output"] = part.compute(self._way, self._world, self._model, forward)
        except CannotSplit as error:
            answer["error"] = str(error)
        if part.ranks[0] == self._world.place.rank:
            self._wire.send(Letter.of(answer))
