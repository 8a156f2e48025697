"""The fleet of one ComfyUI: found devices, started when first needed, ended with the process."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future

from comfyfleet.config import STAGGER, WORKERS, Config, Remote, is_worker
from comfyfleet.fleet.cluster import Cluster, chosen_cluster
from comfyfleet.fleet.fleet import Fleet
from comfyfleet.fleet.seat import MASTER
from comfyfleet.fleet.spec import Host, worker_ids
from comfyfleet.planner import Device, choose_devices, find_devices
from comfyfleet.work import Policy


class Service:
    """Keeps one fleet for a master. Thread-safe."""

    def __init__(
        self, host: Host, own_device: Callable[[], str], config: Callable[[], Config]
    ) -> None:
        """``config`` reads what the owner has set; asked when it is needed."""
        self._host = host
        self._own_device = own_device
        self._config = config
        # Starting a fleet takes seconds: asking for the devices must not wait for it.
        self._devices_lock = threading.Lock()
        self._fleet_lock = threading.Lock()
        self._devices: list[Device] | None = None
        self._cluster: Cluster | None = None
        #: Those that dialled in, by name.
        self._joined: dict[str, Remote] = {}
        self._joined_ever: set[str] = set()
        self._fleet: Fleet | None = None
        #: Called with each fleet that has started.
        self.on_started: Callable[[Fleet], None] = lambda fleet: None
        self._starting: Fleet | None = None

    def devices(self) -> list[Device]:
        """The devices that have, or will get, a worker; none inside a worker.

        Raises InputError for a wrong setting.
        """
        with self._devices_lock:
            if self._devices is None:
                self._cluster = None if is_worker() else chosen_cluster(self._config())
                self._devices = [] if is_worker() else self._chosen()
            return self._devices

    def _chosen(self) -> list[Device]:
        request = self._config().value(WORKERS)
        found = [] if request == "0" else find_devices()
        return choose_devices(request, found, taken=[self._own_device()])

    def remotes(self) -> list[Remote]:
        """The workers elsewhere; none inside a worker. Raises InputError for a wrong setting."""
        if is_worker():
            return []
        named = [each for each in self._config().remotes() if each.enabled]
        return [*named, *list(self._joined.values())]

    def join(self, remote: Remote) -> None:
        """A worker that dialled in; its name is free, see ``fixed_names``."""
        self._joined[remote.name] = remote
        self._joined_ever.add(remote.name)
        if self._fleet is not None:
            self._fleet.add(remote)

    def leave(self, name: str) -> None:
        """One that dialled in has left."""
        self._joined.pop(name, None)

    def look_for_remotes(self) -> None:
        """Add those that the owner has set since the fleet began. Raises InputError."""
        fleet = self._fleet
        if fleet is not None:
            known = set(fleet.care.worker_ids)
            for each in self.remotes():
                if each.name not in known:
                    fleet.add(each)

    def fixed_names(self) -> list[str]:
        """Of all workers that the owner has set, used or not. Raises InputError."""
        listed = [each.name for each in self._config().workers]
        fleet = self._fleet
        known = fleet.care.worker_ids if fleet is not None and fleet.usable else []
        others = [name for name in known if name not in self._joined_ever]
        return [*worker_ids(self.devices()), *listed, *others, MASTER, "all"]

    @property
    def has_workers(self) -> bool:
        """True if the fleet has, or is to have, workers. Raises InputError for a wrong setting."""
        return bool(self.devices() or self.remotes()) or self._cluster is not None

    @property
    def names(self) -> list[str]:
        """The workers that the fleet has, or will have. Raises InputError for a wrong setting.

        A cluster is asked for its own, for which the fleet is started.
        """
        if self.has_workers and self._cluster is not None:
            return self.fleet().care.worker_ids
        return [*worker_ids(self.devices()), *(each.name for each in self.remotes())]

    def fleet(self) -> Fleet:
        """The fleet, started if it is not, and anew if all of its workers were given up."""
        devices = self.devices()
        with self._fleet_lock:
            if self._fleet is not None and not self._fleet.usable:
                self._fleet.close()
                self._fleet = None
            if self._fleet is None:
                stagger_s = self._config().value(STAGGER)
                policy = Policy(stagger_s=stagger_s)
                fleet = Fleet(devices, self._host, policy, self.remotes(), self._cluster)
                self._starting = fleet
                try:
                    fleet.start()
                finally:
                    self._starting = None
                atexit.register(fleet.close)
                self._fleet = fleet
                self.look_for_remotes()  # who has joined while it started
                self.on_started(fleet)
            return self._fleet

    @property
    def running(self) -> Fleet | None:
        """The fleet if it runs; asking starts nothing and waits for nothing."""
        return self._fleet

    @property
    def seen(self) -> Fleet | None:
        """The fleet that runs or is being started, for those who only watch it."""
        return self._starting or self._fleet

    def fleet_soon(self) -> Future[Fleet]:
        """``fleet`` without waiting: starting takes seconds in which others can compute."""
        future: Future[Fleet] = Future()
        threading.Thread(target=_fulfil, args=(future, self.fleet), daemon=True).start()
        return future


def _fulfil(future: Future[Fleet], make: Callable[[], Fleet]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:
        future.set_exception(error)
