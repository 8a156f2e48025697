"""A worker: one Ray actor, one process, one ComfyUI with one device."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from comfyfleet.errors import ComfyFleetError, FleetError, Problem, RunCancelled
from comfyfleet.fleet.logs import rotate, tail
from comfyfleet.fleet.spec import WorkerSpec
from comfyfleet.work import (
    Failure,
    Happening,
    Packed,
    Progress,
    Result,
    Told,
    Unit,
    WorkerInfo,
)

#: Lines of a worker's log that an error shows.
_LOG_LINES = 25


class Worker:
    """The actor. Its constructor boots ComfyUI on the main thread; see ``comfy.boot``."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        _set_environment(spec)
        # Only now: this imports torch, which reads the environment once.
        from comfyfleet.comfy import boot

        # What a process before this one has left there would be taken for ours.
        shutil.rmtree(spec.output_folder, ignore_errors=True)
        self._closed = threading.Event()
        self._current: tuple[str, str] | None = None
        #: True if the current unit was interrupted, perhaps while its values were on their way.
        self._withdrawn = False
        #: Units that were interrupted while they were not here: a word that overtook its unit.
        self._unwanted: deque[str] = deque(maxlen=100)
        self._fault = ""
        try:
            _open_log(spec)
            self._comfy = boot.boot(
                spec.host.comfyui, spec.flags, pack=spec.pack, folder=spec.folder
            )
            self._runner = self._comfy.call(_make_runner(self._comfy.url))
        except BaseException as error:
            # Told by ``info``: a constructor's exception would reach the owner wrapped by Ray.
            traceback.print_exc()
            self._fault = f"{type(error).__name__}: {error}"

    def info(self) -> WorkerInfo | Failure:
        """Who this is, or why it could not start."""
        if self._fault:
            return Failure(message=self._fault)
        from comfyfleet.comfy.inventory import device_name

        return WorkerInfo(
            id=self._spec.id,
            device=self._spec.device.id,
            device_name=device_name(),
            pid=os.getpid(),
            comfyui_version=self._comfy.version,
            log_file=str(self._spec.log_file),
        )

    def node_classes(self) -> list[str]:
        """The classes of nodes that a prompt may have here."""
        from comfyfleet.comfy.inventory import node_classes

        return node_classes()

    def check(self, prompt: dict[str, Any]) -> list[Problem]:
        """ComfyUI's own validation of a prompt, without running it."""
        from comfyfleet.comfy.inventory import check_prompt

        return self._comfy.call(check_prompt(prompt))

    def run(
        self, unit: Unit, stored: Mapping[str, Any], *, free_first: bool = False
    ) -> Iterator[Happening]:
        """Run a unit: its progress (and what is told of it), then one Result or one Failure.

        ``stored`` is where the unit's values lie in Ray's object store.
        """
        prompt_id = unit.mirrored.prompt_id if unit.mirrored else str(uuid.uuid4())
        self._withdrawn = False
        self._current = (unit.id, prompt_id)
        if unit.id in self._unwanted:
            self._current = None
            yield Failure(message="interrupted before it began")
            return
        if free_first:
            self.free({"unload_models": True, "free_memory": True})
        values = _fetch(stored)
        if self._withdrawn:
            yield Failure(message="interrupted before it began")
            return
        events: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        work = self._work(unit, prompt_id, values, events.put)
        future = asyncio.run_coroutine_threadsafe(work, self._comfy.loop)
        future.add_done_callback(lambda done: events.put(_ending(done)))
        while isinstance(event := events.get(), Progress | Told):
            yield event
        self._current = None
        yield event

    def _work(
        self,
        unit: Unit,
        prompt_id: str,
        values: Mapping[str, Packed],
        tell: Callable[[Happening], None],
    ) -> Coroutine[Any, Any, Result]:
        def on_progress(fraction: float) -> None:
            tell(Progress(fraction))

        if unit.mirrored is None:
            run: Coroutine[Any, Any, Result] = self._runner.run(
                unit.prompt, prompt_id, on_progress, values
            )
            return run
        mirror: Coroutine[Any, Any, Result] = self._runner.mirror(
            unit.prompt, unit.mirrored, on_progress, tell
        )
        return mirror

    def interrupt(self, unit_id: str) -> None:
        """Stop this unit if it is the one that runs; ``run`` then ends with a Failure."""
        self._unwanted.append(unit_id)
        current = self._current
        if current is not None and current[0] == unit_id:
            self._withdrawn = True
            self._comfy.call(self._runner.interrupt(current[1]), timeout_s=10)

    def free(self, request: dict[str, Any]) -> None:
        """Unload models, or free memory, when what runs here has ended."""
        self._comfy.call(self._runner.free(request), timeout_s=10)

    def state(self) -> str:
        """Where this worker is as a follower; a line with its stack for whoever waits for it."""
        follow = sys.modules.get("comfyfleet.comfy.follow")
        return "" if follow is None else f"{self._spec.id}: {follow.state()}"

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        from comfyfleet.comfy.inventory import device_memory

        return device_memory()

    def wait(self) -> None:
        """Block for as long as this worker lives: whoever awaits it learns of its death."""
        self._closed.wait()


def _set_environment(spec: WorkerSpec) -> None:
    for name, value in spec.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.chdir(spec.host.cwd)


def _open_log(spec: WorkerSpec) -> None:
    """Print into the log from now on; what earlier processes of this worker wrote may stay."""
    from comfyfleet.comfy.boot import redirect_output

    spec.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotate(spec.log_file)
    redirect_output(spec.log_file)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    sys.stdout.write(f"--- worker {spec.id} on {spec.device.id}, process {os.getpid()}, {now}\n")


def _fetch(stored: Mapping[str, Any]) -> dict[str, Packed]:
    """The values by digest: views of shared memory where it is this machine's."""
    import ray

    return dict(zip(stored, ray.get(list(stored.values())), strict=True))


async def _make_runner(url: str) -> Any:
    from comfyfleet.comfy.runner import Runner

    return Runner(url)


def _ending(done: Any) -> Failure | Result:
    """A unit's end as a value: Ray would wrap an exception and lose our fields."""
    error = done.exception()
    if error is None:
        result: Result = done.result()
        return result
    failure = getattr(error, "failure", None)
    if isinstance(failure, Failure):
        return failure
    if isinstance(error, RunCancelled):
        return Failure(message=f"interrupted: {error}")
    if isinstance(error, ComfyFleetError):
        return Failure(message=str(error))
    return Failure(message=f"{type(error).__name__}: {error}")


def log_tail(path: Path) -> str:
    """The last lines of a log, indented; a note if there is none."""
    try:
        lines = tail(path, _LOG_LINES)
    except FleetError:
        return "  (no log was written)"
    return "\n".join(f"  {line}" for line in lines)
