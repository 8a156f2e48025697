"""Models for the commands: who has what, and copies with their progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from comfyfleet.api.models import SUFFIXES
from comfyfleet.cli.master import MasterClient
from comfyfleet.cli.show import console
from comfyfleet.cli.status import print_json
from comfyfleet.errors import FleetError, InputError
from comfyfleet.graph import parse_prompt

_CHECK_TIMEOUT_S = 120.0
_LOOK_S = 0.25
#: A ComfyUI that is busy may answer late; one that has gone does not come back to this copy.
_MAX_MISSED = 20
_SAID = {
    "waiting": "waits for another copy to this worker",
    "reading": "is read where it is, for its digest",
    "sending": "is on its way",
    "checking": "is checked there",
    "done": "is there",
    "cancelled": "was stopped; the next copy goes on from there",
}


def check_models(
    workflow: Path, *, as_json: bool, url: str | None, token_file: Path | None
) -> None:
    """Print a row for each model and missing class, with a column for each worker."""
    try:
        text = workflow.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{workflow} cannot be read: {error}.") from None
    client = MasterClient(url, token_file)
    with console.status("asking the workers"):
        prompt = parse_prompt(text, str(workflow))
        found = client.post("/models/check", prompt, timeout_s=_CHECK_TIMEOUT_S)
    if as_json:
        print_json(found)
        return
    needs, workers = found["needs"], found["workers"]
    if needs:
        console.print(_table(needs, workers))
    else:
        console.print("it needs no model, and every worker has its node classes")
    for each in workers:
        if each["error"]:
            console.print(Text(f"{each['worker']} is not known: {each['error']}"))
    _advise(needs, workers)


def _table(needs: list[dict[str, Any]], workers: list[dict[str, Any]]) -> Table:
    table = Table("file or node class", "for", *(escape(each["worker"]) for each in workers))
    for number, need in enumerate(needs):
        cells = [_cell(number, each) for each in workers]
        table.add_row(Text(need["name"]), Text(need["input"] or "a node class"), *cells)
    return table


def _cell(number: int, worker: Mapping[str, Any]) -> str:
    if worker["error"]:
        return "?"
    if number in worker["missing"]:
        return "[red]missing[/]"
    return "[yellow]differs[/]" if number in worker["differ"] else "have"


def _advise(needs: list[dict[str, Any]], workers: list[dict[str, Any]]) -> None:
    """How what somebody has gets to who lacks it."""
    for worker in workers[1:]:
        for number in worker["missing"]:
            name = needs[number]["name"]
            having = [each for each in workers if not each["error"] and _has(number, each)]
            if name.endswith(SUFFIXES) and having:
                note = "" if worker["accepts"] else "  (its owner does not accept models yet)"
                origin = "" if having[0] is workers[0] else f" --from {having[0]['worker']}"
                command = f"comfyfleet models copy '{name}' --to {worker['worker']}{origin}{note}"
                console.print(Text(command), soft_wrap=True)


def _has(number: int, worker: Mapping[str, Any]) -> bool:
    return number not in worker["missing"]


def copy_model(
    name: str,
    worker: str,
    *,
    source: str | None,
    folder: str | None,
    url: str | None,
    token_file: Path | None,
) -> None:
    """Copy a model and stay until it is there. Raises FleetError if it does not arrive."""
    client = MasterClient(url, token_file)
    body = {"file": name.replace("\\", "/"), "worker": worker, "folder": folder, "source": source}
    copy = client.post("/models/copy", body, timeout_s=_CHECK_TIMEOUT_S)
    try:
        copy = _follow(client, copy)
    except SystemExit:  # Ctrl-C, or a service manager's stop
        copy = client.post(f"/models/copies/{copy['id']}/cancel", {})
        console.print(_sentence(copy), soft_wrap=True)
        raise
    if copy["state"] == "failed":
        raise FleetError(f"{name} was not copied to {worker}: {copy['error']}")
    console.print(_sentence(copy), soft_wrap=True)


def _follow(client: MasterClient, copy: dict[str, Any]) -> dict[str, Any]:
    """Show its progress to its end; the copy as it is then."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console) as bars:
        bar = bars.add_task("", total=copy["total"])
        while copy["state"] not in ("done", "failed", "cancelled"):
            bars.update(bar, description=_said(copy), completed=copy["bytes"])
            time.sleep(_LOOK_S)
            copy = _again(client, copy["id"])
        bars.update(bar, description=_said(copy), completed=copy["bytes"])
    return copy


def _again(client: MasterClient, copy_id: str) -> dict[str, Any]:
    for missed in range(_MAX_MISSED + 1):
        try:
            found = client.get("/models/copies")["copies"]
            break
        except FleetError:
            if missed == _MAX_MISSED:
                raise
            time.sleep(_LOOK_S)
    copy: dict[str, Any] | None = next((each for each in found if each["id"] == copy_id), None)
    if copy is None:
        raise FleetError(
            f"the ComfyUI at {client.url} was restarted. Copy again: it goes on from there."
        )
    return copy


def show_copies(*, as_json: bool, url: str | None, token_file: Path | None) -> None:
    """Print a line for each copy."""
    found = MasterClient(url, token_file).get("/models/copies")["copies"]
    if as_json:
        print_json(found)
    elif not found:
        console.print("nothing was copied since ComfyUI started")
    for copy in [] if as_json else found:
        console.print(_sentence(copy), soft_wrap=True)


def _sentence(copy: Mapping[str, Any]) -> Text:
    share = 100 * copy["bytes"] / copy["total"]
    origin = f" from {copy['source']}" if copy["source"] else ""
    text = f"{copy['file']}{origin} to {copy['worker']}: {share:.0f}%, {_said(copy)}"
    return Text(f"{text}: {copy['error']}" if copy["error"] else text)


def _said(copy: Mapping[str, Any]) -> str:
    return _SAID.get(copy["state"], str(copy["state"]))
