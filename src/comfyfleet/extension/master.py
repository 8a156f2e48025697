"""The master: its fleet, and the collections that its running prompts have begun."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import execution
import folder_paths

from comfyfleet.comfy import inventory, prompts
from comfyfleet.comfy.places import Places
from comfyfleet.config import Remote, is_worker
from comfyfleet.errors import FleetError, InputError, WorkflowError
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.extension.queue.switch import Switch
from comfyfleet.extension.shares.collection import Collection, Request
from comfyfleet.extension.shares.pieces import Pieces
from comfyfleet.extension.shares.shipping import Cargo, Plan, Unshippable, load, plan_shares
from comfyfleet.fleet import Fleet, Host, Service
from comfyfleet.fleet.gangs import Gang, GangRequest
from comfyfleet.fleet.spec import log_file, worker_ids
from comfyfleet.graph import (
    Link,
    exclusive,
    problem_at,
    slice_bounds,
    used_outputs,
    varying_nodes,
)
from comfyfleet.work import OutputFile, SavedFile

logger = logging.getLogger(__name__)

#: How often the prompts that own a collection are looked after.
_WATCH_INTERVAL_S = 0.25
#: Outputs of a collector that are the same whether a slice came as one or in parts: the images as
#: one batch. The lists have an entry for each share, and sounds follow one another in time.
_SAME_IN_PARTS = frozenset({0})


class Master:
    """The collections of this ComfyUI and the fleet that serves them."""

    def __init__(self) -> None:
        comfyui = Path(execution.__file__).resolve().parent
        flags = tuple(sys.argv[1:])
        url, logs = prompts.own_url(), owner_folder() / "logs"
        folders = {name: _folder(name) for name in ("input", "output", "temp")}
        host = Host(
            comfyui=comfyui,
            flags=flags,
            cwd=Path.cwd(),
            url=url,
            logs=logs,
            folders=folders,
            models=_model_folders(),
        )
        self._logs = logs
        #: ComfyUI's folders in which prompts name files: input, output and temp.
        self.folders = folders
        self._service = Service(host, prompts.torch_device_id, read_config)
        #: Gives files of workers their place among those of this ComfyUI.
        self.places = Places()
        #: The shared queue; only in the ComfyUI that the user talks to, see ``watch``.
        self.switch: Switch | None = None
        self._lock = threading.Lock()
        self._collections: dict[tuple[str, str], Collection] = {}
        self._watcher: threading.Thread | None = None

    @property
    def has_workers(self) -> bool:
        """True if the fleet has, or will have, workers besides this process."""
        return self._service.has_workers

    @property
    def computes(self) -> bool:
        """False if the owner wants this process to compute nothing that its workers can.

        Raises InputError for a wrong setting.
        """
        return self.switch is None or self.switch.master_computes or not self.has_workers

    @property
    def worker_names(self) -> list[str]:
        """The workers that the fleet has, or will have."""
        return self._service.names

    @property
    def gang_names(self) -> list[str]:
        """Those of them that can follow in a gang: on this machine."""
        return worker_ids(self._service.devices())

    @property
    def seen_fleet(self) -> Fleet | None:
        """The fleet that runs or is being started, for those who only watch it."""
        return self._service.seen

    def log_of(self, worker_id: str) -> Path:
        """Where what the worker prints is kept, also when it does not run."""
        return log_file(self._logs, worker_id)

    def warm_up(self) -> None:
        """Start the fleet, if it is not, while something else is done."""
        self._service.fleet_soon()

    def fleet_soon(self) -> Future[Fleet]:
        """The fleet, started if it is not."""
        return self._service.fleet_soon()

    def watch_queue(self) -> None:
        """Take over ComfyUI's queue, so that it can be shared; once, before it is used."""
        self.places.watch_own_nodes()
        self.switch = Switch(self.places, self._service)
        self.switch.turn_on_if_set()

    def running_fleet(self) -> Fleet:
        """The fleet that runs. Raises FleetError if none does."""
        fleet = self._service.running
        if fleet is None:
            raise FleetError("no fleet is running; share the queue, or run a node that uses it.")
        return fleet

    def join(self, remote: Remote) -> None:
        """A worker that dialled in."""
        self._service.join(remote)

    def remotes(self) -> list[Remote]:
        """The workers elsewhere. Raises InputError for a wrong setting."""
        return self._service.remotes()

    def leave(self, name: str) -> None:
        """A worker that dialled in has left."""
        self._service.leave(name)

    def look_for_workers(self) -> None:
        """Let a fleet that runs use the workers that were added to fleet.yaml meanwhile."""
        self._service.look_for_remotes()

    def fixed_names(self) -> list[str]:
        """Names that no worker may have that dials in. Raises InputError for a wrong setting."""
        return self._service.fixed_names()

    def free(self, request: dict[str, Any]) -> None:
        """What somebody asks of this ComfyUI's /free, for the workers too."""
        fleet = self._service.running
        if fleet is not None:
            fleet.care.free(request)

    def place(self, files: Iterable[OutputFile]) -> None:
        """Put files that one worker saved for a unit into this ComfyUI's output folder."""
        numbers: dict[str, int] = {}
        for file in files:
            folder, _, name = file.name.rpartition("/")
            saved = SavedFile(
                kind="output", subfolder=folder, name=name, data=file.data, foreign=file.foreign
            )
            self.places.place(saved, numbers)

    def open_gang(self, request: GangRequest) -> Gang:
        """Followers for one sampling, on their way."""
        return Gang(self._service.fleet_soon(), request)

    def begin(self, request: Request, prompt: Mapping[str, Any]) -> Collection:
        """The collection of this collector in the running prompt; begun if it is new.

        If its plan has links, their values are needed first: see ``ship``.
        """
        key = (prompts.current_prompt_id(), request.node_id)
        with self._lock:
            if key in self._collections:
                return self._collections[key]
        collection = self._plan(request, prompt)
        if not collection.plan.links:
            self._begin(collection, Cargo(), self._service.fleet_soon)
        elif self.has_workers:
            self.warm_up()
        self.keep(collection)
        return collection

    def keep(self, collection: Collection) -> None:
        """Look after a collection of the running prompt, for as long as this one runs."""
        with self._lock:
            self._collections[prompts.current_prompt_id(), collection.request.node_id] = collection
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()

    def ship(
        self,
        collection: Collection,
        values: Sequence[Sequence[Any]],
        fleet: Callable[[], Future[Fleet]] | None = None,
    ) -> None:
        """Begin a collection with the values of its plan's links.

        Where a value cannot leave this process, the collection has another plan, and is not begun.
        """
        known = dict(zip(collection.plan.links, values, strict=True))
        try:
            cargo = load(collection.plan, known, self._bounds_of(collection))
        except Unshippable as error:
            collection.refuse(error.link)
            if collection.plan.links:
                return
            cargo = Cargo()
        self._begin(collection, cargo, fleet or self._service.fleet_soon)

    def classes_elsewhere(self) -> frozenset[str]:
        """The node classes of the workers; those of this ComfyUI while the fleet has not begun."""
        running = self._service.running
        return running.node_classes if running else frozenset(inventory.node_classes())

    def fleet_if_idle(self) -> Future[Fleet] | None:
        """The fleet, perhaps starting; None if this process computes sooner than its workers.

        They are all busy then, or will be.
        """
        if not self.computes:
            return self._service.fleet_soon()
        running = self._service.running
        if running is None or not running.workers:
            promised = sum(each.begun for each in list(self._collections.values()))
            return self._service.fleet_soon() if promised < len(self.worker_names) else None
        if not running.has_idle:
            return None
        ready: Future[Fleet] = Future()
        ready.set_result(running)
        return ready

    def find(self, node_id: str) -> Collection:
        """The collection that ``begin`` made for this node in the running prompt."""
        with self._lock:
            return self._collections[prompts.current_prompt_id(), node_id]

    def end(self, node_id: str) -> None:
        """Forget a collection whose node has its result."""
        with self._lock:
            collection = self._collections.pop((prompts.current_prompt_id(), node_id), None)
        if collection is not None:
            collection.end()

    def _plan(self, request: Request, prompt: Mapping[str, Any]) -> Collection:
        if is_worker():
            request = replace(request, delegate=False)
        elif request.delegate and not self.has_workers:
            raise InputError(
                "delegate is on, but the fleet has no worker: set COMFYFLEET_WORKERS to devices "
                "for workers, or turn delegate off."
            )
        elif not request.delegate and not self.computes:
            away = not _is_needed_here(request, prompt)
            request = replace(request, delegate=away, spared=True)
        ships = self.has_workers and (request.delegate or request.shares != 1)

        def planner(refused: set[Link]) -> Plan:
            return plan_shares(prompt, request.inputs, ships=ships, refused=refused)

        return Collection(request, prompt, planner)

    def _num_devices(self, request: Request) -> int:
        return len(self.worker_names) + (not request.delegate)

    def _bounds_of(self, collection: Collection) -> Callable[[str, int], list[tuple[int, int]]]:
        request, devices = collection.request, self._num_devices(collection.request)

        def bounds(split_id: str, total: int) -> list[tuple[int, int]]:
            size = collection.prompt[split_id]["inputs"].get("size", 0)
            try:
                return slice_bounds(total, size, shares=request.shares, devices=devices)
            except InputError as error:
                raise WorkflowError([problem_at(collection.prompt, split_id, str(error))]) from None

        return bounds

    def _begin(
        self, collection: Collection, cargo: Cargo, fleet: Callable[[], Future[Fleet]]
    ) -> None:
        request, workers = collection.request, len(self.worker_names)
        shares = len(cargo.own) or request.shares or self._num_devices(request)
        collection.cut(cargo)
        _warn_if_equal(collection, shares)
        elsewhere = range(0 if request.delegate else 1, shares)
        pieces = Pieces(collection.prompt, collection.links, cargo, workers, self.computes)
        can_halve = used_outputs(collection.prompt, request.node_id) <= _SAME_IN_PARTS
        units = [pieces.unit_of(i, cargo.items_of(i) if can_halve else 1) for i in elsewhere]
        collection.begin(pieces, units)
        if workers and units:
            collection.hand_over(fleet())

    def _watch(self) -> None:
        """Cancel collections whose prompt has ended without them: failed, or cancelled.

        And the other way round: without the shares of others, this ComfyUI's own is for nothing.
        """
        pause = threading.Event()
        while True:
            pause.wait(_WATCH_INTERVAL_S)
            # In this order: what is known here ran when it began, so it either runs or has ended.
            known = list(self._collections)
            try:
                running = prompts.running_prompt_ids()
            except Exception:
                logger.exception("cannot see which prompts run; looking again")
                continue
            for key in known:
                self._look_after(key, running)

    def _look_after(self, key: tuple[str, str], running: set[str]) -> None:
        """In a frame that ends: one that waits would keep the last collection, with its results."""
        if key[0] not in running:
            self._cancel(key)
        elif (found := self._collections.get(key)) and found.cancelled:
            prompts.interrupt_if_running(key[0])

    def _cancel(self, key: tuple[str, str]) -> None:
        with self._lock:
            collection = self._collections.pop(key, None)
        if collection is not None:
            collection.cancel("the prompt that asked for it has ended")


def _model_folders() -> tuple[Path, ...]:
    known = folder_paths.folder_names_and_paths
    found = (path for name in known for path in folder_paths.get_folder_paths(name))
    return tuple(map(Path, dict.fromkeys(found)))


def _folder(name: str) -> Path:
    return Path(folder_paths.get_directory_by_type(name)).resolve()


def _is_needed_here(request: Request, prompt: Mapping[str, Any]) -> bool:
    """Is the first share computed here whoever collects, as another output needs it?"""
    own = exclusive(prompt, request.node_id, inventory.is_output)
    return any(link[0] not in own for link in request.inputs.values())


def _warn_if_equal(collection: Collection, shares: int) -> None:
    sources = {link[0] for link in collection.links.values()}
    if shares > 1 and not sources & varying_nodes(collection.prompt):
        logger.warning(
            "node %s (FleetCollector): all %d shares will be equal, as nothing upstream differs "
            "between them. Connect a Fleet Seed to the sampler's seed.",
            collection.request.node_id,
            shares,
        )


_master: Master | None = None


def master() -> Master:
    """The master of this process. Made at first use: importing starts nothing."""
    global _master
    if _master is None:
        _master = Master()
    return _master
