"""Collections: what a collector node has begun, from its lazy question to its result.

A collector is asked for its lazy inputs before anything upstream of it runs. At that moment its
other shares go to the fleet; the master's own share follows as usual. ``execute`` then waits for
the rest, in share order, and lets the master take further shares meanwhile.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import execution

from comfyfleet.comfy import prompts
from comfyfleet.comfy.values import pack
from comfyfleet.config import is_worker
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.fleet import Delivery, Fleet, Host, Run, Service, new_run_id
from comfyfleet.graph import Link, as_link, model_key, upstream, vary, varying_nodes
from comfyfleet.work import Packed, Result, Unit

logger = logging.getLogger(__name__)

#: How often the prompts that own a collection are looked after.
_WATCH_INTERVAL_S = 0.25

#: How long one wait for a unit lasts before the user's cancel button is looked at again.
_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a collector asks for: its linked inputs, how many shares, who computes."""

    node_id: str
    inputs: Mapping[str, Link]
    shares: int
    delegate: bool


class Collection:
    """One execution of one collector: shares that the master has, and the run of the others.

    Without a run (a fleet without workers, or inside a worker) this process computes all shares.
    """

    def __init__(
        self, request: Request, prompt: Mapping[str, Any], shares: int, run: Future[Run] | None
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.shares = shares
        self._run = run
        self._own: dict[int, Packed] = {}
        self._left = deque(range(1, shares)) if run is None else deque[int]()
        self._joined = False

    def add_local(self, share: int, values: Mapping[str, list[Any]]) -> None:
        """Hand in a share that the master computed."""
        packed = pack(dict(values), f"share {share}")
        if share == 0 or self._run is None:
            self._own[share] = packed
        else:
            run = self._run.result()
            unit = Unit(run_id=run.id, index=share, prompt={})
            run.finish_local(unit, Result(values=packed))

    def next_share(self) -> int | None:
        """Wait a moment for a share that the master shall compute; None if there is none now."""
        if self._run is None:
            return self._left.popleft() if self._left else None
        try:
            run = self._run.result(_WAIT_S)
        except NotYet:  # the fleet is still starting
            return None
        if not self._joined and not self.request.delegate:
            self._joined = True
            run.join_local()
        unit = run.next_local(_WAIT_S)
        return None if unit is None else unit.index

    @property
    def complete(self) -> bool:
        """True when all shares are here. Raises what the fleet or the run failed with."""
        if self._run is None:
            return len(self._own) == self.shares
        return self._run.done() and self._run.result().wait(0)

    @property
    def collected(self) -> int:
        """How many shares are here."""
        started = self._run is not None and self._run.done() and not self._run.exception()
        return len(self._own) + (len(self._run.result().deliveries) if started else 0)

    def values(self) -> list[Packed]:
        """What each share gave, in share order; only when complete."""
        remote = self._run.result().results() if self._run else []
        shares = {**self._own, **{each.unit.index: _packed(each) for each in remote}}
        return [shares[index] for index in sorted(shares)]

    def cancel(self, reason: str) -> None:
        """Stop what still runs, also if the fleet is only starting."""
        if self._run is not None:
            self._run.add_done_callback(lambda run: _cancel(run, reason))


class Master:
    """The collections of this ComfyUI and the fleet that serves them."""

    def __init__(self) -> None:
        comfyui = Path(execution.__file__).resolve().parent
        host = Host(comfyui=comfyui, flags=tuple(sys.argv[1:]), cwd=Path.cwd())
        self._service = Service(host, prompts.torch_device_id)
        self._lock = threading.Lock()
        self._collections: dict[tuple[str, str], Collection] = {}
        self._watcher: threading.Thread | None = None

    @property
    def has_workers(self) -> bool:
        """True if the fleet has, or will have, workers besides this process."""
        return bool(self._service.devices())

    def begin(self, request: Request, prompt: Mapping[str, Any]) -> Collection:
        """The collection of this collector in the running prompt; begun if it is new."""
        key = (prompts.current_prompt_id(), request.node_id)
        with self._lock:
            if key in self._collections:
                return self._collections[key]
        collection = self._begin(request, prompt)
        with self._lock:
            self._collections[key] = collection
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return collection

    def find(self, node_id: str) -> Collection:
        """The collection that ``begin`` made for this node in the running prompt."""
        with self._lock:
            return self._collections[prompts.current_prompt_id(), node_id]

    def end(self, node_id: str) -> None:
        """Forget a collection whose node has its result."""
        with self._lock:
            self._collections.pop((prompts.current_prompt_id(), node_id), None)

    def _begin(self, request: Request, prompt: Mapping[str, Any]) -> Collection:
        workers = len(self._service.devices())
        if is_worker():
            request = replace(request, delegate=False)
        elif request.delegate and not workers:
            raise InputError(
                "delegate is on, but the fleet has no worker: set COMFYFLEET_WORKERS to devices "
                "for workers, or turn delegate off."
            )
        devices = workers + (not request.delegate)
        shares = request.shares or devices
        _warn_if_equal(request, prompt, shares)
        remote = range(0 if request.delegate else 1, shares)
        if not workers or not remote:
            return Collection(request, prompt, shares, None)
        units = units_of(request, _with_shares(prompt, devices), remote)
        return Collection(request, prompt, shares, self._submit(units))

    def _submit(self, units: list[Unit]) -> Future[Run]:
        run: Future[Run] = Future()

        def submit(ready: Future[Fleet]) -> None:
            try:
                run.set_result(ready.result().submit(units))
            except BaseException as error:
                run.set_exception(error)

        self._service.fleet_soon().add_done_callback(submit)
        return run

    def _watch(self) -> None:
        """Cancel collections whose prompt has ended without them: failed, or cancelled."""
        pause = threading.Event()
        while True:
            pause.wait(_WATCH_INTERVAL_S)
            running = prompts.running_prompt_ids()
            with self._lock:
                ended = [key for key in self._collections if key[0] not in running]
                orphans = [self._collections.pop(key) for key in ended]
            for collection in orphans:
                collection.cancel("the prompt that asked for it has ended")


def units_of(request: Request, prompt: Mapping[str, Any], shares: range) -> list[Unit]:
    """One unit per share: everything upstream of the collector, as that share sees it."""
    run_id = new_run_id()
    targets = [link[0] for link in request.inputs.values()]
    base = upstream(prompt, targets)
    sink = {
        "class_type": "FleetReturn",
        "inputs": {name: list(link) for name, link in request.inputs.items()},
    }
    key = model_key(base)
    return [
        Unit(
            run_id=run_id,
            index=share,
            prompt={**vary(base, share), f"{request.node_id}.return": sink},
            model_key=key,
        )
        for share in shares
    ]


def _with_shares(prompt: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """The prompt with "one share per device" as a number: a worker must count as we do here."""
    return {
        node_id: {**node, "inputs": {**node["inputs"], "shares": devices}}
        if node["inputs"].get("shares") == 0 and node["class_type"] == "FleetCollector"
        else node
        for node_id, node in prompt.items()
    }


def linked(node: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Link]:
    """Those of the inputs that are connected, with where they come from."""
    found = {name: as_link(node["inputs"].get(name)) for name in names}
    return {name: link for name, link in found.items() if link is not None}


def _warn_if_equal(request: Request, prompt: Mapping[str, Any], shares: int) -> None:
    sources = {link[0] for link in request.inputs.values()}
    if shares > 1 and not sources & varying_nodes(prompt):
        logger.warning(
            "node %s (FleetCollector): all %d shares will be equal, as nothing upstream differs "
            "between them. Connect a Fleet Seed to the sampler's seed.",
            request.node_id,
            shares,
        )


def _packed(delivery: Delivery) -> Packed:
    if delivery.result.values is None:
        raise ComfyFleetError(f"worker {delivery.worker_id} returned no values for its share.")
    return delivery.result.values


def _cancel(run: Future[Run], reason: str) -> None:
    if run.exception() is None:
        run.result().cancel(reason)


_master: Master | None = None


def master() -> Master:
    """The master of this process. Made at first use: importing starts nothing."""
    global _master
    if _master is None:
        _master = Master()
    return _master
