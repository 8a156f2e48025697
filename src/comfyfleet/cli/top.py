"""``comfyfleet top``: the state of a fleet, drawn anew every second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from comfyfleet.cli.master import MasterClient
from comfyfleet.cli.show import console
from comfyfleet.errors import FleetError, InputError

#: Runs that a frame shows, the latest ones.
_NUM_RUNS = 8
_STYLES = {
    "busy": "green",
    "idle": "",
    "lent": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "paused": "yellow",
    "quarantined": "red",
    "stuck": "red",
    "gone": "red",
}


def show_top(*, once: bool, interval_s: float, url: str | None, token_file: Path | None) -> None:
    """Show the fleet until Ctrl-C; a single frame with ``once``, or where nobody watches."""
    if not 0.1 <= interval_s <= 3600:
        raise InputError(f"--interval {interval_s:g}: give seconds, 0.1 to 3600.")
    client = MasterClient(url, token_file)
    first = frame(client.get("/status"), client.url)
    if once or not console.is_terminal:
        console.print(first)
        return
    with Live(first, console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval_s)
            live.update(_next_frame(client), refresh=True)


def _next_frame(client: MasterClient) -> Group | Text:
    try:
        return frame(client.get("/status"), client.url)
    except FleetError as error:  # it may be restarted just now
        return Text(str(error), style="red")


def frame(status: dict[str, Any], url: str) -> Group:
    """One picture of what /comfyfleet/v1/status says."""
    sharing, totals = status["sharing"], status["totals"]
    shared = "shared" if sharing["on"] else "not shared"
    head = Text(
        f"{url}  fleet: {status['fleet']}  queue: {shared}  waiting: {status['runs_waiting']}  "
        f"done: {totals['runs_done']}  failed: {totals['runs_failed']}  "
        f"cancelled: {totals['runs_cancelled']}"
    )
    notes = [_line(each, "yellow") for each in (sharing["note"], *status["notes"]) if each]
    blank = Text()
    return Group(head, *notes, blank, _workers(status), *_troubles(status), blank, _runs(status))


def _workers(status: dict[str, Any]) -> Table:
    table = _table("worker", "state", "device", "memory", "free", "model")
    table.add_column("in hand", overflow="fold")  # what gives way on a narrow terminal
    for name in ("%", "per s", "done", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in status["workers"]:
        table.add_row(*_worker_row(worker))
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _worker_row(worker: dict[str, Any]) -> list[str | Text]:
    memory, task, speed = worker["memory"], worker["task"], worker["units_per_second"]
    return [
        Text(worker["id"]),
        Text(worker["state"], style=_STYLES[worker["state"]]),
        Text(worker["device"]),
        _size(memory["rss_bytes"]),
        _size(memory["device_free_bytes"]),
        Text((worker["model_key"] or "")[:8]),
        Text("" if task is None else _task(task)),
        "" if task is None else f"{100 * task['fraction']:.0f}",
        "" if speed is None else f"{speed:.3g}",
        str(worker["units_done"]),
        str(worker["units_failed"] + worker["units_lost"]),
    ]


def _task(task: dict[str, Any]) -> str:
    name = task["prompt_id"][:8] or f"{task['run']}:{task['unit']}"
    node = f" node {task['node']}" if task["node"] else ""
    return name + node + (f" {task['step']}/{task['steps']}" if task["steps"] else "")


def _troubles(status: dict[str, Any]) -> Iterator[Text]:
    """Why workers do not work, what last went wrong with those that do, and what else to know."""
    for worker in status["workers"]:
        error = worker["last_error"]
        if worker["reason"]:
            yield _line(f"{worker['id']} is {worker['state']}: {worker['reason']}", "yellow")
        elif error is not None:
            ago = _ago(status["time"] - error["time"])
            yield _line(f"{worker['id']} failed {ago} ago: {error['message']}", "red")
        if worker["note"]:
            yield _line(f"{worker['id']}: {worker['note']}", "")


def _line(text: str, style: str) -> Text:
    return Text(text.partition("\n")[0], style=style, overflow="fold")


def _runs(status: dict[str, Any]) -> Table:
    table = _table("run", "lane", "units", "where", "seconds", "outcome")
    begun = [run for run in status["runs"] if run["outcome"] != "waiting"]
    for run in begun[-_NUM_RUNS:]:
        where = ", ".join(dict.fromkeys(attempt["worker"] for attempt in run["attempts"]))
        seconds = (run["ended"] or status["time"]) - run["submitted"]
        error = run["error"].partition("\n")[0]
        table.add_row(
            Text(run["prompt_id"][:8] or run["id"]),
            Text(run["lane"] or "-"),
            f"{run['units_done']}/{run['units']}",
            Text(where),
            f"{seconds:.1f}",
            Text(f"{run['outcome']} {error}"),
        )
    return table


def _size(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 1024**3:.1f} G"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
