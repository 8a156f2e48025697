"""A worker: one Ray actor, one process, one ComfyUI with one device."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from comfyfleet.errors import FleetError, Problem
from comfyfleet.fleet.attempts import UnitActor
from comfyfleet.fleet.logs import rotate, tail
from comfyfleet.fleet.spec import WorkerSpec
from comfyfleet.work import Failure, WorkerInfo

#: Lines of a worker's log that an error shows.
_LOG_LINES = 25


class Worker(UnitActor):
    """The actor. Its constructor boots ComfyUI on the main thread; see ``comfy.boot``."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        _set_environment(spec)
        # Only now: this imports torch, which reads the environment once.
        from comfyfleet.comfy import boot

        # What a process before this one has left there would be taken for ours.
        shutil.rmtree(spec.output_folder, ignore_errors=True)
        self._fault = ""
        try:
            _open_log(spec)
            self._comfy = boot.boot(
                spec.host.comfyui, spec.flags, pack=spec.pack, folder=spec.folder
            )
            super().__init__(self._comfy.loop, self._comfy.call(_make_runner(self._comfy.url)))
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

    def state(self) -> str:
        """Where this worker is as a follower; a line with its stack for whoever waits for it."""
        follow = sys.modules.get("comfyfleet.comfy.follow")
        return "" if follow is None else f"{self._spec.id}: {follow.state()}"

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        from comfyfleet.comfy.inventory import device_memory

        return device_memory()


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


async def _make_runner(url: str) -> Any:
    from comfyfleet.comfy.runner import Runner

    return Runner(url)


def log_tail(path: Path) -> str:
    """The last lines of a log, indented; a note if there is none."""
    try:
        lines = tail(path, _LOG_LINES)
    except FleetError:
        return "  (no log was written)"
    return "\n".join(f"  {line}" for line in lines)
