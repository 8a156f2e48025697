"""The fleet of one ComfyUI: found devices, started when first needed, ended with the process."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future

from comfyfleet.config import STAGGER, WORKERS, is_worker
from comfyfleet.fleet.cluster import Cluster, chosen_cluster
from comfyfleet.fleet.fleet import Fleet
from comfyfleet.fleet.spec import Host, worker_ids
from comfyfleet.planner import Device, choose_devices, find_devices
from comfyfleet.work import Policy


class Service:
    """Keeps one fleet for a master. Thread-safe."""

    def __init__(self, host: Host, own_device: Callable[[], str]) -> None:
        self._host = host
        self._own_device = own_device
        # Starting a fleet takes seconds: asking for the devices must not wait for it.
        self._devices_lock = threading.Lock()
        self._fleet_lock = threading.Lock()
        self._devices: list[Device] | None = None
        self._cluster: Cluster | None = None
        self._fleet: Fleet | None = None
        self._starting: Fleet | None = None

    def devices(self) -> list[Device]:
        """This machine's devices that have, or will get, a worker; none inside a worker.

        Raises InputError for a wrong setting.
        """
        with self._devices_lock:
            if self._devices is None:
                self._cluster = None if is_worker() else chosen_cluster()
                self._devices = [] if is_worker() else self._chosen()
            return self._devices

    @property
    def has_workers(self) -> bool:
        """True if the fleet has, or is to have, workers. Raises InputError for a wrong setting."""
        return bool(self.devices()) or self._cluster is not None

    def worker_names(self) -> list[str]:
        """All workers; a cluster is asked for its own, for which the fleet is started."""
        devices = self.devices()
        return worker_ids(devices) if self._cluster is None else self.fleet().care.worker_ids

    def _chosen(self) -> list[Device]:
        request = WORKERS.read()
        found = [] if request == "0" else find_devices()
        return choose_devices(request, found, taken=[self._own_device()])

    def fleet(self) -> Fleet:
        """The fleet, started if it is not, and anew if all of its workers were given up."""
        devices = self.devices()
        with self._fleet_lock:
            if self._fleet is not None and not self._fleet.usable:
                self._fleet.close()
                self._fleet = None
            if self._fleet is None:
                policy = Policy(stagger_s=STAGGER.read_seconds())
                fleet = Fleet(devices, self._host, policy, cluster=self._cluster)
                self._starting = fleet
                try:
                    fleet.start()
                finally:
                    self._starting = None
                atexit.register(fleet.close)
                self._fleet = fleet
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
