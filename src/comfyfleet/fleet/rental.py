"""Machines of a cloud as workers in fleet.yaml: none is forgotten, neither there nor here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from comfyfleet import config
from comfyfleet.errors import ComfyFleetError, FleetError, InputError
from comfyfleet.fleet.launcher import Launcher, Machine, Tell

#: Stands for all machines of a launcher.
ALL = "all"


def rent(path: Path, launcher: Launcher, count: int, tell: Tell) -> None:
    """Start machines; each is a worker in the file once its ComfyUI answers.

    At the first failure, and when interrupted, those that do not answer yet are ended again.
    """
    entry, present = launcher.entry, launcher.machines()
    if len(present) + count > entry.max:
        raise InputError(
            f"launcher {entry.name} may have {entry.max} machines at once and has {len(present)}. "
            "Stop some, or set its max."
        )
    open_ends: list[str] = []
    try:
        for name in [launcher.new_name() for _ in range(count)]:
            open_ends.append(name)
            launcher.start(name)
        deadline = time.monotonic() + entry.start_timeout
        while open_ends:
            worker = launcher.wait_for(open_ends[0], deadline)
            config.add_worker(path, worker.model_dump(exclude_none=True))
            tell(f"worker {open_ends.pop(0)} at {worker.url} is in {path}")
    except BaseException:
        for name in open_ends:
            _end(launcher, name, tell)
        raise


def give_back(path: Path, launcher: Launcher, which: str, tell: Tell) -> None:
    """End the machine of this id or name, or ALL, and take its worker out of the file.

    What is not there any more is no failure. Raises FleetError that names those that may still run.
    """
    machines = launcher.machines()
    chosen = [each for each in machines if which in (ALL, each.id, each.name)]
    gone = {name for name in _workers(path, launcher) if which in (ALL, name)}
    failed = []
    for name in gone | {each.name for each in chosen}:
        _forget(path, launcher, name, tell)
    for machine in chosen:
        try:
            launcher.stop(machine)
            tell(f"{machine.name} (id {machine.id}) has ended")
        except ComfyFleetError as error:
            failed.append(_warning(launcher, machine, error))
    if failed:
        raise FleetError("\n".join(failed))
    if not chosen and not gone:
        known = ", ".join(f"{each.name} (id {each.id})" for each in machines) or "none"
        tell(f"nothing to stop; machines of {launcher.entry.name}: {known}")


def gone(path: Path, launcher: Launcher, machines: Sequence[Machine]) -> list[str]:
    """Workers of the launcher in the file whose machines are not there."""
    present = {each.name for each in machines}
    return [name for name in _workers(path, launcher) if name not in present]


def _workers(path: Path, launcher: Launcher) -> list[str]:
    return [each.name for each in config.load(path).workers if launcher.is_own(each.name)]


def _forget(path: Path, launcher: Launcher, name: str, tell: Tell) -> None:
    """First: no fleet shall start with a worker that is about to end."""
    if name in _workers(path, launcher):
        config.remove_worker(path, name)
        tell(f"worker {name} is no longer in {path}")


def _end(launcher: Launcher, name: str, tell: Tell) -> None:
    """End what was started and is no worker yet, or say clearly what may be left."""
    tell(f"{name} does not work; it is ended again. Do not interrupt this.")
    machine: Machine | None = None
    try:
        machine = launcher.find(name)
        if machine is None:
            tell(f"no machine {name} is listed; look at your provider whether one was started")
            return
        launcher.stop(machine)
        tell(f"{name} (id {machine.id}) has ended")
    except ComfyFleetError as error:
        tell(f"{name}: {error}" if machine is None else _warning(launcher, machine, error))


def _warning(launcher: Launcher, machine: Machine, error: ComfyFleetError) -> str:
    return (
        f"ATTENTION: {machine.name} (id {machine.id}) may still run and cost money. {error} "
        f"End it by: {launcher.stop_command(machine)}"
    )
