"""A worker on a node of a cluster: what is a path on the master's machine is found on the node.

Its folder is made by its process and removed by a guard of its own, as nobody else is there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from comfyfleet.client.greeting import too_old
from comfyfleet.client.inventory import Need
from comfyfleet.client.setup import Setup, own_setup
from comfyfleet.config import WORKER_MARK, find_comfyui, pack_dir
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.fleet import guard
from comfyfleet.fleet.logs import rotate_open, tail
from comfyfleet.fleet.ray_node import CPU_SLOT
from comfyfleet.fleet.registry import PREFIX, sessions_root
from comfyfleet.fleet.spec import Host, WorkerSpec, inherited_flags, worker_flags
from comfyfleet.fleet.worker import Worker, log_tail
from comfyfleet.planner import Device
from comfyfleet.work import Failure, Prompt, WorkerInfo

#: How often a worker looks at the size of its log.
_LOG_INTERVAL_S = 60.0
#: Of this, any number of workers can take a part: it names the node.
_NODE_PART = 0.001
#: Where a worker's files go is its own affair.
_REPLACED = ("--output-directory",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What one worker on a cluster's node is started with; its paths are found there."""

    id: str
    device: Device
    #: The master's: its ComfyUI is taken if the node has one at the same place, and no other.
    host: Host
    #: The node's address and name.
    address: str
    node: str
    #: How many workers on the CPU share the node's cores.
    cpu_workers: int = 1
    #: Versions and flags of the master's ComfyUI.
    own: Setup = field(default_factory=Setup)

    @property
    def demand(self) -> dict[str, Any]:
        """What Ray finds a place by. Of a node that is away until it is back: its address stays."""
        node = {f"node:{self.address}": _NODE_PART}
        if self.device.kind == "cpu":
            return {"num_gpus": 0, "resources": {**node, CPU_SLOT: 1}}
        return {"num_gpus": 1, "resources": node}


def node_addresses(specs: Iterable[object], living: Container[str]) -> dict[str, str]:
    """Those of the living workers on nodes, by their names and in the order of ``specs``.

    That is not the order of their starts: a node is called by its first one.
    """
    nodes = [spec for spec in specs if isinstance(spec, NodeSpec) and spec.id in living]
    return {spec.id: spec.address for spec in nodes}


class NodeWorker(Worker):
    """The actor on a cluster's node."""

    elsewhere = True

    def __init__(self, spec: NodeSpec) -> None:
        self._node, self._master = spec.node, spec.own
        self._own: WorkerSpec | None = None
        try:
            self._own = _resolved(spec, _guarded_folder())
        except (ComfyFleetError, OSError) as error:
            self._fault = str(error)
            return
        super().__init__(self._own)
        if not self._fault:
            self._open_stores(self._own.id)
        threading.Thread(target=_tend_log, args=(self._own.log_file,), daemon=True).start()

    def _open_stores(self, worker: str) -> None:
        """Before anybody calls: two calls at once must find the same ones, and their locks."""
        from comfyfleet.comfy.inputs import Inputs
        from comfyfleet.comfy.prompts import queued_text
        from comfyfleet.comfy.stock import Stock

        self._inputs, self._stock = Inputs(worker, queued_text), Stock()

    def info(self) -> WorkerInfo | Failure:
        """Who this is, or why it could not start, with the end of its log."""
        answer = super().info()
        if self._own is None:
            return answer
        if isinstance(answer, WorkerInfo):
            here = own_setup(self._own.host.comfyui, self._own.host.flags)
            note = "; ".join(here.differences(self._master))
            return replace(answer, host=self._node, note=note)
        log = log_tail(self._own.log_file)
        return replace(answer, message=f"{answer.message}\nThe end of its log:\n{log}")

    def fitted(
        self, prompt: Prompt, coming: frozenset[str]
    ) -> tuple[dict[str, Mapping[str, Any]], list[Need | str]]:
        """A prompt as it can run here, and what it lacks; see ``comfy.supplies``."""
        from comfyfleet.comfy import supplies

        return supplies.fitted(prompt, coming)

    def take(self, name: str, size: int, start: int, data: bytes) -> int | Failure:
        """The next bytes of an input file; how many are here, or why they cannot be."""
        try:
            return self._inputs.take(name, size, start, data)
        except ComfyFleetError as error:  # as a value: Ray would wrap it
            return Failure(message=str(error))

    def stock(self, method: str, *args: Any) -> Any:
        """What a method of ``comfy.stock.Stock`` returns, or why it cannot, as a Failure."""
        try:
            return self._comfy.call(getattr(self._stock, method)(*args))
        except (ComfyFleetError, OSError) as error:
            return Failure(message=str(error))

    def clock(self) -> float:
        """What the node's clock says, in seconds since 1970."""
        return time.time()

    def log(self, lines: int) -> list[str]:
        """The last lines of its log."""
        assert self._own is not None
        return tail(self._own.log_file, lines)


def describe_node(comfyui: str) -> dict[str, str]:
    """What a master wants to know of the node where this is called; ``fault``: why it is no use."""
    own = {"code": code_digest(), "version": own_version()}
    try:
        here = _comfyui_here(Path(comfyui))
    except InputError as error:
        return {**own, "comfyui": "", "fault": str(error)}
    fault = too_old(str(here), own_setup(here, ()).comfyui)
    return {**own, "comfyui": str(here), "fault": fault}


@cache
def code_digest() -> str:
    """Equal where all of this package's code is: master and workers pass objects to each other."""
    package = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if "_pack" not in path.parts:
            total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def own_version() -> str:
    """The version of this package, if it is installed."""
    try:
        return version("comfyfleet")
    except PackageNotFoundError:
        return "of a checkout"


def _comfyui_here(master_has: Path) -> Path:
    same = str(master_has) if (master_has / "main.py").is_file() else None
    return find_comfyui(os.environ.get("COMFYUI_PATH", "").strip() or same)


def _resolved(spec: NodeSpec, folder: Path) -> WorkerSpec:
    """The spec with paths of this node. Raises InputError for what is not here."""
    comfyui = _comfyui_here(spec.host.comfyui)
    flags = list(_kept(inherited_flags(spec.host.flags)))
    missing = [flag for flag in flags if os.path.isabs(flag) and not os.path.exists(flag)]
    if missing:
        raise InputError(
            f"the flags of the master's ComfyUI name {missing[0]}, which {spec.node} does not "
            "have. Make it there, or start the master without it."
        )
    cwd = spec.host.cwd if spec.host.cwd.is_dir() else comfyui
    host = Host(comfyui=comfyui, flags=tuple(flags), cwd=cwd)
    return WorkerSpec(
        id=spec.id,
        device=_given_device(spec.device),
        host=host,
        flags=worker_flags(spec.device, host, folder),
        environment=_environment(spec, folder),
        folder=folder,
        pack=pack_dir(),
    )


def _kept(flags: list[str]) -> Iterator[str]:
    """The flags without those that a worker's own replace, whose folders need not be here."""
    skipped = False
    for flag in flags:
        if not skipped and flag.partition("=")[0] not in _REPLACED:
            yield flag
        skipped = flag in _REPLACED


def _environment(spec: NodeSpec, folder: Path) -> dict[str, str | None]:
    """Ray shows a GPU worker its GPU, and gives each process as many threads as CPUs: none."""
    own: dict[str, str | None] = {WORKER_MARK: spec.id, guard.SESSION_MARK: str(folder)}
    if spec.device.kind == "cpu":
        threads = max(1, (os.cpu_count() or 1) // spec.cpu_workers)
        return {**own, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    return {**own, "OMP_NUM_THREADS": None}


def _given_device(device: Device) -> Device:
    """The device that Ray chose for this process."""
    import ray

    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return replace(device, index=int(given[0])) if given and given[0].isdigit() else device


def _guarded_folder() -> Path:
    """A private folder that goes when this process does, in whatever way."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=sessions_root()))
    read, _write = os.pipe()
    command = [sys.executable, guard.__file__, str(folder), guard.DETACH]
    try:
        subprocess.run(
            command,
            # Without the mark of the node's own session, whose end it is to outlive.
            env={name: value for name, value in os.environ.items() if name != guard.SESSION_MARK},
            stdin=read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(read)
    # ``_write`` stays open for as long as this process lives; nobody inherits it.
    return folder


def _tend_log(log: Path) -> None:
    pause = threading.Event()
    while not pause.wait(_LOG_INTERVAL_S):
        rotate_open(log)
