"""Bytes between ranks: torch.distributed's process groups, without its global state.

A process may belong to several worlds, and another pack may use ``torch.distributed`` beside us, so
the groups are objects of ours. Everything travels as bytes: any dtype works on any backend. gloo
moves CPU memory (tensors of a GPU are staged there); NCCL moves GPU memory.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store

from comfyfleet.errors import LinkLost

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
#: Seconds that a message may be waited for: a leader may be busy with other things for hours.
_PATIENCE_S = 7 * 24 * 3600.0
#: Seconds in which all ranks of a group come to connect: a forward's first layers at the most.
_MEET_S = 120.0
#: How often it is seen whether they have come; what whoever leaves says; a meeting's good end.
_LOOK_S = 0.005
_LEFT = "left"
_ALL_CAME = "all came"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank is: what every rank of a world must agree on, but for rank and device.

    ``backend`` moves the data of forwards: gloo, or nccl where each rank has a GPU of its own.
    ``host`` is the address that gloo listens on. ``timeout_s`` bounds one operation of a forward.
    """

    rank: int
    size: int
    device: torch.device
    backend: str = "gloo"
    host: str = _LOOPBACK
    timeout_s: float = 600.0


class Group:
    """Some ranks of a world that exchange bytes; this process is one of them."""

    def __init__(
        self,
        world: World,
        ranks: tuple[int, ...],
        backend: str,
        process_group: Any,
        timeout: timedelta,
    ) -> None:
        self.ranks = ranks
        self.index = ranks.index(world.place.rank)
        self._world = world
        self._device = world.place.device
        #: Where the backend can read and write.
        self._medium = self._device if backend == "nccl" else torch.device("cpu")
        self._connections = process_group
        self._backend = backend
        #: gloo's messages know only the limit of its connecting; NCCL's know their own.
        self._limit = () if backend == "nccl" else (timeout,)
        #: Exchanges so far, equal on all ranks of the group: messages in flight are told apart.
        self._exchanges = 0
        #: Exchanges that nobody has waited for yet. Nothing else may hold what backends return:
        #: it holds the connections, and a traceback would hold it.
        self._underway: dict[int, list[Any]] = {}

    @property
    def _pg(self) -> Any:
        self._check_open()
        return self._connections

    def _check_open(self) -> None:
        if self._connections is None:
            raise LinkLost(f"rank {self._world.place.rank} has left its gang.")

    def close(self) -> None:
        """Drop the connections. Whoever holds this object keeps them no longer."""
        self._connections = None
        self._underway.clear()

    def abort(self) -> None:
        """End what waits on a GPU for a rank that is gone; from any thread. gloo ends by itself."""
        connections = self._connections
        if self._backend == "nccl" and connections is not None:
            connections.abort()

    def __len__(self) -> int:
        return len(self.ranks)

    def all_to_all(self, data: Tensor, sizes: Sequence[int], into: Sequence[int]) -> Tensor:
        """Send ``sizes[i]`` elements of the flat ``data`` to the i-th rank of the group.

        ``into[i]`` elements come from the i-th rank; all of them are returned, flat, in order.
        """
        outgoing, incoming = self._readable(data), self._empty(sum(into), data.dtype)
        width = data.element_size()
        self._world.wait(
            lambda: self._pg.alltoall_base(
                _as_bytes(incoming),
                _as_bytes(outgoing),
                [width * count for count in into],
                [width * count for count in sizes],
            ).wait()
        )
        return incoming.to(self._device)

    def all_gather(self, shard: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's flat shard; ``sizes[i]`` elements from the i-th rank."""
        copies = shard.repeat(len(self))
        full = self.all_to_all(copies, [shard.numel()] * len(self), sizes)
        return list(full.split(list(sizes)))

    def send(self, data: Tensor, to: int) -> None:
        """Send a flat tensor to one rank of the group, by index."""
        outgoing = self._readable(data)
        self._world.wait(lambda: self._pg.send([_as_bytes(outgoing)], to, 0).wait(*self._limit))

    def receive(self, size: int, dtype: torch.dtype, source: int) -> Tensor:
        """Receive ``size`` elements, flat, on this rank's device."""
        incoming = self._empty(size, dtype)
        self._world.wait(lambda: self._pg.recv([_as_bytes(incoming)], source, 0).wait(*self._limit))
        return incoming.to(self._device)

    def start_exchange(self, data: Tensor, to: int, size: int, source: int) -> Callable[[], Tensor]:
        """Begin to send ``data`` to one rank of the group and to receive ``size`` elements.

        ``to`` and ``source`` are indices in the group. Call what is returned to wait for them.
        """
        world, outgoing, incoming = self._world, self._readable(data), self._empty(size, data.dtype)
        self._exchanges += 1
        tag = self._exchanges
        sends = lambda: self._pg.send([_as_bytes(outgoing)], to, tag)  # noqa: E731
        receives = lambda: self._pg.recv([_as_bytes(incoming)], source, tag)  # noqa: E731
        # Some ranks send first and some receive first: NCCL carries out one after the other.
        order = (sends, receives) if to < self.index else (receives, sends)
        self._underway[tag] = [world.begin(start) for start in order]

        def finish() -> Tensor:
            world.wait(lambda: self._end_exchange(tag))
            return incoming.to(self._device)

        return finish

    def _end_exchange(self, tag: int) -> None:
        self._check_open()
        for i in range(len(self._underway[tag])):
            self._underway[tag][i].wait(*self._limit)
        del self._underway[tag]

    def _readable(self, data: Tensor) -> Tensor:
        return data.contiguous().to(self._medium)

    def _empty(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self._medium)


class World:
    """All ranks of a gang. Groups come to be when they are first asked for, by all of theirs.

    ``lost`` says whether a rank has died without a word, as far as this process knows.
    """

    def __init__(
        self, store: Store, place: Place, lost: Callable[[], bool] = lambda: False
    ) -> None:
        self.place = place
        #: Operations so far: the rank with the fewest is the late one.
        self.operations = 0
        self.closed = False
        self._store = store
        self._lost = lost
        self._groups: dict[tuple[str, tuple[int, ...]], Group] = {}
        self._thread: int | None = None

    def group(self, ranks: Sequence[int]) -> Group:
        """The group of these ranks, for the data of forwards; this rank must be one of them."""
        return self._group("data", tuple(ranks), self.place.backend, self.place.timeout_s)

    def line(self, ranks: Sequence[int]) -> Group:
        """A group for messages: by gloo, which waits without effort and as long as it takes."""
        return self._group("line", tuple(ranks), "gloo", _PATIENCE_S)

    def close(self) -> None:
        """Drop all connections: ranks that wait for this one see it at once."""
        if not self.closed:
            self.closed = True
            with suppress(RuntimeError):  # nobody is left to be told
                self._store.set(_LEFT, "")
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def abort(self) -> None:
        """Another rank is gone: nobody shall wait for it any more. From any thread."""
        for group in list(self._groups.values()):
            group.abort()

    def state(self) -> str:
        """Where this rank is, for whoever waits for it: operations done, and its stack."""
        frame = sys._current_frames().get(self._thread) if self._thread is not None else None
        stack = "".join(traceback.format_stack(frame)[-8:]) if frame else "  (idle)\n"
        return f"rank {self.place.rank} has done {self.operations} operations; it is in:\n{stack}"

    def wait(self, operate: Callable[[], T]) -> T:
        """Do something that waits for other ranks. Raises LinkLost."""
        self.operations += 1
        self._thread = threading.get_ident()
        try:
            return self.begin(operate)
        finally:
            self._thread = None

    def begin(self, start: Callable[[], T]) -> T:
        """Do something with a connection. Raises LinkLost."""
        try:
            return start()
        except RuntimeError as error:  # what torch.distributed raises for all its failures
            raise LinkLost(f"rank {self.place.rank} lost the others: {error}") from error

    def _group(self, purpose: str, ranks: tuple[int, ...], backend: str, timeout_s: float) -> Group:
        if self.closed:
            raise LinkLost(f"rank {self.place.rank} has left its gang.")
        if (purpose, ranks) not in self._groups:
            store = PrefixStore(f"{purpose}/{'-'.join(map(str, ranks))}", self._store)
            rank, timeout = ranks.index(self.place.rank), timedelta(seconds=timeout_s)
            make = partial(_PROCESS_GROUPS[backend], store, rank, len(ranks), timeout, self.place)
            connect = partial(self._connect, store, rank, len(ranks), make, min(timeout_s, _MEET_S))
            connections = self.wait(connect)
            self._groups[purpose, ranks] = Group(self, ranks, backend, connections, timeout)
        return self._groups[purpose, ranks]

    def _connect(
        self, store: Store, rank: int, size: int, make: Callable[[], Any], timeout_s: float
    ) -> Any:
        """Come together, connect, and see that all have: who leaves meanwhile keeps nobody.

        Connecting itself waits for a rank that has gone for as long as for a message.
        """
        meet = partial(self._meet, store, rank, size, time.monotonic() + timeout_s)
        meet("here")
        connections = make()
        meet("connected")
        return connections

    def _meet(self, store: Store, rank: int, size: int, end: float, word: str) -> None:
        """Say a word, and wait until all have said it; all go on, or none.

        One may leave while others come: the first verdict on it holds for all.
        """
        store.set(f"{word}-{rank}", "")
        said = [f"{word}-{other}" for other in range(size)]
        pause = threading.Event()
        while not store.check([word]):
            if verdict := self._verdict(store.check(said), end):
                store.compare_set(word, "", verdict)
            else:
                pause.wait(_LOOK_S)
        if (verdict := store.get(word).decode()) != _ALL_CAME:
            raise RuntimeError(verdict)

    def _verdict(self, all_came: bool, end: float) -> str:
        """What whoever looks now can say of a meeting; empty while it goes on."""
        if all_came:
            return _ALL_CAME
        if self._lost() or self._store.check([_LEFT]):
            return "one of them has left its gang."
        return "not all came in time to connect." if time.monotonic() > end else ""


def _as_bytes(data: Tensor) -> Tensor:
    return data.view(torch.uint8)


@cache
def _gloo_device(host: str) -> Any:
    """One listening address and one thread for all groups of the process."""
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo.create_device(hostname=host)


def _keep_no_flight_record() -> None:
    """Switch off torch's record of operations, unless the owner set its size.

    It is one map for all groups of the process, which torch (2.11) writes without a lock: the first
    operations of two groups in two threads crash the process. It also costs a stack trace each.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, place: Place) -> Any:
    from torch.distributed import ProcessGroupGloo

    _keep_no_flight_record()
    options = ProcessGroupGloo._Options()
    # Connecting waits so long for a rank that died in that moment; what follows has its own limit.
    options._timeout = min(timeout, timedelta(seconds=_MEET_S))
    options._devices = [_gloo_device(place.host)]
    group = ProcessGroupGloo(store, rank, size, options)
    group._set_default_timeout(timeout)
    return group


def _nccl(store: Store, rank: int, size: int, timeout: timedelta, place: Place) -> Any:
    from torch.distributed import ProcessGroupNCCL

    _keep_no_flight_record()
    # Ranks are on one machine: nobody else shall reach them. And a rank that dies must not take
    # the process of the others with it, as torch's default does; 2: clean up only.
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)


_PROCESS_GROUPS: dict[str, Callable[..., Any]] = {"gloo": _gloo, "nccl": _nccl}
