"""Bytes between ranks: torch.distributed's process groups, without its global state.

A process may belong to several worlds, and another pack may use ``torch.distributed`` beside us, so
the groups are objects of ours. Everything travels as bytes: any dtype works on any backend. gloo
moves CPU memory (tensors of a GPU are staged there); NCCL moves GPU memory.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store

from comfyfleet.errors import LinkLost

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank is: what every rank of a world must agree on, but for rank and device.

    ``host`` is the address that gloo listens on. ``timeout_s`` bounds one operation.
    """

    rank: int
    size: int
    device: torch.device
    backend: str = "gloo"
    host: str = _LOOPBACK
    timeout_s: float = 600.0


class Group:
    """Some ranks of a world that exchange bytes; this process is one of them."""

    def __init__(self, world: World, ranks: tuple[int, ...], process_group: Any) -> None:
        self.ranks = ranks
        self.index = ranks.index(world.place.rank)
        self._world = world
        self._pg = process_group

    def __len__(self) -> int:
        return len(self.ranks)

    def all_to_all(self, data: Tensor, sizes: Sequence[int], into: Sequence[int]) -> Tensor:
        """Send ``sizes[i]`` elements of the flat ``data`` to the i-th rank of the group.

        ``into[i]`` elements come from the i-th rank; all of them are returned, flat, in order.
        """
        outgoing = self._world.outgoing(data)
        incoming = self._world.empty(sum(into), data.dtype)
        width = data.element_size()
        self._world.wait(
            lambda: self._pg.alltoall_base(
                _as_bytes(incoming),
                _as_bytes(outgoing),
                [width * count for count in into],
                [width * count for count in sizes],
            )
        )
        return incoming.to(data.device)

    def all_gather(self, shard: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's flat shard; ``sizes[i]`` elements from the i-th rank."""
        copies = shard.repeat(len(self))
        full = self.all_to_all(copies, [shard.numel()] * len(self), sizes)
        return list(full.split(list(sizes)))

    def start_exchange(self, data: Tensor, to: int, size: int, source: int) -> Callable[[], Tensor]:
        """Begin to send ``data`` to one rank of the group and to receive ``size`` elements.

        ``to`` and ``source`` are indices in the group. Call what is returned to wait for them.
        """
        world, outgoing = self._world, self._world.outgoing(data)
        incoming = world.empty(size, data.dtype)
        tag = world.next_tag()
        if to < self.index:  # some ranks send first, some receive first: NCCL needs an order
            works = [self._send(outgoing, to, tag), self._receive(incoming, source, tag)]
        else:
            works = [self._receive(incoming, source, tag), self._send(outgoing, to, tag)]

        def finish() -> Tensor:
            for work in works:
                world.wait(lambda work=work: work)
            return incoming.to(data.device)

        return finish

    def _send(self, data: Tensor, to: int, tag: int) -> Any:
        return self._world.begin(lambda: self._pg.send([_as_bytes(data)], to, tag))

    def _receive(self, data: Tensor, source: int, tag: int) -> Any:
        return self._world.begin(lambda: self._pg.recv([_as_bytes(data)], source, tag))


class World:
    """All ranks of a gang. Groups come to be when they are first asked for, by all of theirs."""

    def __init__(self, store: Store, place: Place) -> None:
        self.place = place
        #: Operations so far: the rank with the fewest is the late one.
        self.operations = 0
        self._store = store
        self._groups: dict[tuple[int, ...], Group] = {}
        self._thread: int | None = None

    def group(self, ranks: Sequence[int]) -> Group:
        """The group of these ranks of the world; this rank must be one of them."""
        key = tuple(ranks)
        if key not in self._groups:
            name = "-".join(map(str, key))
            pg = self.begin(lambda: _process_group(PrefixStore(name, self._store), key, self.place))
            self._groups[key] = Group(self, key, pg)
        return self._groups[key]

    def close(self) -> None:
        """Drop all connections: ranks that wait for this one see it at once."""
        self._groups.clear()

    def state(self) -> str:
        """Where this rank is, for whoever waits for it: operations done, and its stack."""
        frame = sys._current_frames().get(self._thread) if self._thread is not None else None
        stack = "".join(traceback.format_stack(frame)[-8:]) if frame else "  (idle)\n"
        return f"rank {self.place.rank} has done {self.operations} operations; it is in:\n{stack}"

    def wait(self, start: Callable[[], Any]) -> None:
        """Start an operation and wait for its end. Raises LinkLost."""
        self.operations += 1
        self._thread = threading.get_ident()
        try:
            self.begin(lambda: start().wait())
        finally:
            self._thread = None

    def begin(self, start: Callable[[], Any]) -> Any:
        """Start an operation. Raises LinkLost."""
        try:
            return start()
        except RuntimeError as error:  # what torch.distributed raises for all its failures
            raise LinkLost(f"rank {self.place.rank} lost the others: {error}") from error

    def next_tag(self) -> int:
        """A number for messages that are in flight at the same time; equal on all ranks."""
        self.operations += 1
        return self.operations

    def outgoing(self, data: Tensor) -> Tensor:
        """``data`` where the backend can read it."""
        return data.contiguous().to(self._medium)

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """Memory into which the backend can write."""
        return torch.empty(size, dtype=dtype, device=self._medium)

    @property
    def _medium(self) -> torch.device:
        return self.place.device if self.place.backend == "nccl" else torch.device("cpu")


def _as_bytes(data: Tensor) -> Tensor:
    return data.view(torch.uint8)


def _process_group(store: Store, ranks: tuple[int, ...], place: Place) -> Any:
    rank, timeout = ranks.index(place.rank), timedelta(seconds=place.timeout_s)
    if place.backend == "nccl":
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return ProcessGroupNCCL(store, rank, len(ranks), options)
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=place.host)]
    return ProcessGroupGloo(store, rank, len(ranks), options)
