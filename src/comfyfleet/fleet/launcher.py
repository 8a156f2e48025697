"""Machines of a cloud, by the command of their provider that the owner has set in fleet.yaml.

A machine is known as ours by its name alone, which is made at random before it is started. So one
whose start was broken off in whatever way is still found, and nothing has to be written down.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyfleet.client.link import Endpoint, Link
from comfyfleet.config import Config, LauncherEntry, Remote, WorkerEntry, worker_entry
from comfyfleet.config.schema import PLACEHOLDER
from comfyfleet.errors import FleetError, InputError, Unreachable
from comfyfleet.fleet.interrupt import run
from comfyfleet.fleet.redact import secrets_of_environment, without

#: Of one command of a provider; they ask a service on the Internet and return.
COMMAND_S = 120.0
#: Until a machine that was started is listed, and one that was stopped no longer is.
_LISTED_S = 30.0
_PAUSE_S = 3.0
_LAST_CHARACTERS = 600
#: An id becomes a word of a command: never one that begins an option.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that a launcher has started."""

    name: str
    id: str
    #: Empty as long as the provider does not say it.
    url: str


class Launcher:
    """One entry below ``launchers:``. Raises InputError for what is set wrongly, or FleetError."""

    def __init__(
        self,
        config: Config,
        name: str,
        tell: Tell,
        *,
        pause_s: float = _PAUSE_S,
        listed_s: float = _LISTED_S,
    ) -> None:
        """``tell`` gets each command before it is run. Raises InputError without its token."""
        self.entry: LauncherEntry = config.launcher(name)
        self._config, self._tell = config, tell
        self._pause_s, self._listed_s = pause_s, listed_s
        own = {"token_env": self.entry.token_env, "token_file": self.entry.token_file}
        token = config.remote(worker_entry({"name": name, "url": "http://any", **own})).token
        self._secrets = (token, *secrets_of_environment(config.environ))
        self._own_name = re.compile(re.escape(name) + r"-[0-9a-f]{8}")

    def new_name(self) -> str:
        """What a new machine, and the worker on it, is called."""
        return f"{self.entry.name}-{secrets.token_hex(4)}"

    def is_own(self, name: str) -> bool:
        """Is this the name of a machine, or worker, that this launcher has started?"""
        return self._own_name.fullmatch(name) is not None

    def machines(self) -> list[Machine]:
        """Those that it has started and that are still there."""
        found = _pluck(self._listed(), self.entry.items)
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise FleetError(self._said("list: its JSON has no list; set items"))
        named = [(str(_pluck(each, self.entry.name_key)), each) for each in found]
        return [self._machine(name, each) for name, each in named if self.is_own(name)]

    def start(self, name: str) -> None:
        """Start a machine."""
        self._run("start", {"name": name})

    def stop(self, machine: Machine) -> None:
        """End a machine, and wait until it is no longer listed."""
        self._run("stop", {"id": machine.id, "name": machine.name})
        deadline = time.monotonic() + self._listed_s
        while any(each.id == machine.id for each in self.machines()):
            if time.monotonic() >= deadline:
                raise FleetError(f"{machine.name} (id {machine.id}) is listed still.")
            time.sleep(self._pause_s)

    def stop_command(self, machine: Machine) -> str:
        """What ends it, for the owner to type."""
        return self._shown(self._words("stop", {"id": machine.id, "name": machine.name}))

    def find(self, name: str) -> Machine | None:
        """The machine of this name, once it is listed; None if it is not, for a while."""
        deadline = time.monotonic() + self._listed_s
        while True:
            found = next((each for each in self.machines() if each.name == name), None)
            if found is not None or time.monotonic() >= deadline:
                return found
            time.sleep(self._pause_s)

    def wait_for(self, name: str, deadline: float) -> WorkerEntry:
        """The worker on it, once its ComfyUI answers. ``deadline``: as of ``time.monotonic``."""
        why = "it is not listed"
        while True:
            machine = next((each for each in self.machines() if each.name == name), None)
            if machine is not None:
                why = f"{name} (id {machine.id}) has no address yet"
            if machine is not None and machine.url:
                worker = self.worker(machine)
                why = run(_why_silent(self._config.remote(worker)))
                if not why:
                    return worker
            if time.monotonic() >= deadline:
                raise FleetError(
                    self._said(f"{name} did not answer in {self.entry.start_timeout} s: {why}")
                )
            time.sleep(self._pause_s)

    def worker(self, machine: Machine) -> WorkerEntry:
        """How fleet.yaml names the worker on it."""
        entry = self.entry
        keys = {"token_env": entry.token_env, "token_file": entry.token_file, "ca": entry.ca}
        return worker_entry({"name": machine.name, "url": machine.url, **keys})

    def _machine(self, name: str, listed: Any) -> Machine:
        id_ = str(_pluck(listed, self.entry.id_key))
        if not _ID.fullmatch(id_):
            raise FleetError(self._said(f"list: {name} has no id that can be used; set id_key"))
        known = {"id": id_, "name": name}
        keys = PLACEHOLDER.findall(self.entry.url)
        values = {key: known.get(key) or _pluck(listed, key) for key in keys}
        is_known = all(isinstance(each, (str, int)) and each != "" for each in values.values())
        url = PLACEHOLDER.sub(lambda key: str(values[key[1]]), self.entry.url) if is_known else ""
        return Machine(name=name, id=id_, url=url)

    def _listed(self) -> Any:
        text = self._run("list", {})
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise FleetError(self._said("list printed no JSON")) from None

    def _words(self, kind: str, values: Mapping[str, str]) -> list[str]:
        words: list[str] = getattr(self.entry, kind)
        return [PLACEHOLDER.sub(lambda key: values[key[1]], word) for word in words]

    def _run(self, kind: str, values: Mapping[str, str]) -> str:
        command = self._words(kind, values)
        if kind != "list":
            self._tell(f"$ {self._shown(command)}")
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_S,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise InputError(
                self._said(f"{kind}: {command[0]!r} cannot be run ({error.strerror}); install it")
            ) from None
        except subprocess.TimeoutExpired:
            raise FleetError(self._said(f"{kind} did not end in {COMMAND_S:.0f} s")) from None
        if done.returncode:
            words = self._readable(f"{done.stdout}\n{done.stderr}".strip()[-_LAST_CHARACTERS:])
            raise FleetError(self._said(f"{kind} ended with {done.returncode}: {words}"))
        return done.stdout

    def _shown(self, command: Sequence[str]) -> str:
        return self._readable(shlex.join(command))

    def _readable(self, text: str) -> str:
        """What others wrote, without secrets, and without what would steer the terminal."""
        lines = without(text, self._secrets).splitlines()
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)

    def _said(self, what: str) -> str:
        return f"launcher {self.entry.name}: {what}."


def _pluck(value: Any, path: str) -> Any:
    """What stands there; None if nothing does."""
    for key in path.split(".") if path else ():
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


async def _why_silent(remote: Remote) -> str:
    """Why no ComfyUI answers there; empty if one does."""
    link = Link(Endpoint(url=remote.url, token=remote.token, ca=remote.ca), patience_s=10.0)
    try:
        status, answer = await link.ask("GET", "/system_stats")
    except Unreachable as error:
        return str(error)
    finally:
        await link.close()
    if status == 200 and isinstance(answer, dict) and "system" in answer:
        return ""
    hint = "; is its token the right one?" if status in (401, 403) else ""
    return f"{remote.url} answers with status {status}{hint}"
