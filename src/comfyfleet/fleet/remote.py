"""A worker that is a ComfyUI elsewhere: one Ray actor that speaks HTTP to it.

The actor's own process keeps what comes from outside away from the owner's ComfyUI. It ends when
the address has not answered for a while, and is started again as any lost worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyfleet.client.greeting import Greeting, ask_stats
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.model_link import LinkStore
from comfyfleet.client.models import Site
from comfyfleet.client.remote import RemoteRunner
from comfyfleet.client.setup import Setup, own_setup
from comfyfleet.config import Remote
from comfyfleet.errors import InputError, Problem, Unreachable
from comfyfleet.fleet.attempts import UnitActor
from comfyfleet.fleet.logs import rotate
from comfyfleet.fleet.spec import Host, log_file
from comfyfleet.work import Failure, Prompt, WorkerInfo

logger = logging.getLogger(__name__)

#: A machine that restarts its network, or loads a large model in one call, is back by then.
_PATIENCE_S = 60.0
#: The list of nodes is some 20 MB, or two minutes over a link of 1.5 Mbit/s.
_GREETING_S = 150.0
#: How often the address is asked whether it is there.
_PULSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSpec:
    """Everything that one such worker is started with."""

    id: str
    endpoint: Endpoint
    #: Where the files lie that prompts name: ComfyUI's input, output and temp folders.
    folders: Mapping[str, Path]
    #: Where the owner's models lie, for their sizes.
    models: tuple[Path, ...]
    #: Versions and flags of the owner's ComfyUI.
    own: Setup
    log_file: Path


def endpoint_of(remote: Remote) -> Endpoint:
    """The way to it."""
    return Endpoint(url=remote.url, token=remote.token, ca=remote.ca, socket=remote.socket)


def site_of(remote: Remote) -> Site:
    """Its models."""

    def open_store(patience_s: float) -> LinkStore:
        return LinkStore(Link(endpoint_of(remote), patience_s=patience_s))

    return Site(name=remote.name, place=remote.name, open=open_store)


def remote_specs(remotes: Sequence[Remote], host: Host, logs: Path) -> list[RemoteSpec]:
    """One spec for each that is enabled; ``logs``: where logs go if the host keeps none."""
    own = own_setup(host.comfyui, host.flags)
    return [
        RemoteSpec(
            id=each.name,
            endpoint=endpoint_of(each),
            folders=host.folders,
            models=host.models,
            own=own,
            log_file=log_file(host.logs or logs, each.name),
        )
        for each in remotes
        if each.enabled
    ]


class RemoteWorker(UnitActor):
    """The actor; its methods are those of ``fleet.worker.Worker``."""

    elsewhere = True

    def __init__(self, spec: RemoteSpec) -> None:
        self._spec = spec
        self._fault = ""
        _open_log(spec)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        try:
            made = asyncio.run_coroutine_threadsafe(self._greet(), loop).result()
            runner, self._greeting = made
            super().__init__(loop, runner)
            self._remote = runner
            self._pulse = asyncio.run_coroutine_threadsafe(self._feel(), loop)
            logger.info("%s: %s, note: %s", spec.endpoint.url, self._greeting, self._greeting.note)
        except Exception as error:
            # Told by ``info``: a constructor's exception would reach the owner wrapped by Ray.
            logger.error("%s", traceback.format_exc())
            self._fault = str(error)

    async def _greet(self) -> tuple[RemoteRunner, Greeting]:
        self._link = Link(self._spec.endpoint, patience_s=_PATIENCE_S)
        spec = self._spec
        runner = RemoteRunner(self._link, spec.folders, models=spec.models, own=spec.own)
        try:
            return runner, await asyncio.wait_for(runner.greet(), _GREETING_S)
        except asyncio.TimeoutError:
            told = f"it did not say within {_GREETING_S:.0f} s what it is; is the network slow?"
            raise Unreachable(spec.endpoint.url, told) from None

    async def _feel(self) -> None:
        """End when the address has not answered for as long as the patience lasts."""
        heard, away = time.monotonic(), False
        while not self._closed.is_set():
            try:
                away = await asyncio.wait_for(self._ask(), _PATIENCE_S) or away
                heard = time.monotonic()
                if away and self._running is None:
                    await self._meet_again()
                    away = False
            except (Unreachable, InputError, asyncio.TimeoutError) as error:
                away = True
                self._remote.doubt()
                silent_s = time.monotonic() - heard
                logger.warning("no answer for %.0f s: %s", silent_s, error)
                if silent_s >= _PATIENCE_S:
                    self._close(f"no answer for {silent_s:.0f} s: {error}")
            await asyncio.sleep(_PULSE_S)

    async def _ask(self) -> bool:
        """Was it started anew between two looks, so that nobody has seen it away?

        Raises Unreachable or InputError unless a ComfyUI answers that lets us in.
        """
        status, _ = await self._link.ask("GET", "/prompt")
        if status != 200:  # a door or a proxy before one that is away answers too
            await ask_stats(self._link)
        if await self._remote.is_anew():
            self._remote.doubt()
            return True
        return False

    async def _meet_again(self) -> None:
        """After a break: it may have been started anew, with other packs, or be another one.

        Then this worker ends, and the next one tells the fleet what is there now. While a unit is
        in hand nobody has to ask: it goes on, or this worker ends with it.
        """
        if await asyncio.wait_for(self._remote.greet(), _GREETING_S) != self._greeting:
            self._close("it was started anew with other packs, flags or versions")

    def info(self) -> WorkerInfo | Failure:
        """Who this is, or why it could not start."""
        if self._fault:
            return Failure(message=self._fault)
        return WorkerInfo(
            id=self._spec.id,
            device=self._greeting.device,
            device_name=f"{self._greeting.device_name} at {self._spec.endpoint.url}",
            pid=os.getpid(),
            comfyui_version=self._greeting.version,
            log_file=str(self._spec.log_file),
            note=self._greeting.note,
        )

    def node_classes(self) -> list[str]:
        """The classes of nodes that a prompt may have here."""
        return self._remote.inventory.classes

    def check(self, prompt: Prompt) -> list[Problem]:
        """What is missing here for a prompt; its own validation comes when it runs."""
        return [Problem(message=f"it lacks {each}") for each in self._remote.lacks(prompt)]

    def state(self) -> str:
        """It follows in no gang."""
        return ""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        return self._call(self._remote.memory())


def _open_log(spec: RemoteSpec) -> None:
    spec.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotate(spec.log_file)
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(filename=spec.log_file, level=logging.INFO, format=form, force=True)
    logger.info("--- worker %s at %s, process %d", spec.id, spec.endpoint.url, os.getpid())
