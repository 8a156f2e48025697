"""``comfyfleet logs``: what a worker has printed, and what it prints."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote

from comfyfleet.api.routes import MAX_LINES
from comfyfleet.cli.master import MasterClient
from comfyfleet.cli.show import console
from comfyfleet.errors import InputError
from comfyfleet.fleet.logs import Follower
from comfyfleet.fleet.registry import FleetRecord, read_records

_POLL_S = 0.5


def show_log(
    worker: str, *, lines: int, follow: bool, url: str | None, token_file: Path | None = None
) -> None:
    """Print the last lines of a worker's log, and go on with what comes."""
    if lines < 1:
        raise InputError(f"--lines {lines}: give 1 or more.")
    log = _log_of(worker, lines, url, token_file)
    if isinstance(log, list):
        if follow:
            raise InputError(
                f"worker {worker} is on another machine, where its log cannot be followed; leave "
                "--follow out."
            )
        for line in log:
            console.out(line, highlight=False)
        return
    follower = Follower(log)
    for line in follower.begin(lines):
        console.out(line, highlight=False)
    while follow:
        time.sleep(_POLL_S)
        console.out(follower.read(), highlight=False, end="")


def _log_of(worker: str, lines: int, url: str | None, token_file: Path | None) -> Path | list[str]:
    """By the fleet's owner if that is a ComfyUI, else by the record of the command's fleet.

    The lines themselves if the log is on another machine.
    """
    records = read_records()
    if records and not url and not any(record.url for record in records):
        return _recorded(worker, records)
    client = MasterClient(url, token_file)
    found = client.get(f"/workers/{quote(worker, safe='')}/log?lines={min(lines, MAX_LINES)}")
    return list(found["lines"]) if found["host"] else Path(found["file"])


def _recorded(worker: str, records: list[FleetRecord]) -> Path:
    infos = [info for record in records for info in record.workers]
    logs = [info.log_file for info in infos if info.id == worker]
    hosts = [info.host for info in infos if info.id == worker and info.host]
    if hosts:
        raise InputError(f"the log of {worker} is on {hosts[0]}, as {logs[0]}; read it there.")
    if len(logs) > 1:
        raise InputError(f"several fleets have a worker {worker}; its logs: {', '.join(logs)}")
    if not logs:
        names = ", ".join(info.id for info in infos)
        raise InputError(f"no worker is called {worker!r}; choose {names}.")
    return Path(logs[0])
