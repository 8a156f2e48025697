"""``comfyfleet cloud``: rented machines as workers, by the command of their provider."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from comfyfleet.cli.options import AsJson, ComfyUI, ConfigFile

app = typer.Typer(
    help="Start and stop machines of a cloud as workers, by the launchers in fleet.yaml.",
    no_args_is_help=True,
)

Launchers = Annotated[str, typer.Argument(metavar="LAUNCHER", help="One below launchers:.")]


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="LAUNCHER", help="Only this one's machines.")
    ] = None,
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
    as_json: AsJson = False,
) -> None:
    """Show the machines that are there, and workers whose machines are gone."""
    from comfyfleet.cli.configure import config_path, read_config
    from comfyfleet.cli.status import print_json
    from comfyfleet.fleet.launcher import Launcher

    found, path = read_config(file, comfyui), config_path(file, comfyui)
    names = [name] if name else [entry.name for entry in found.document.launchers]
    rows = [row for each in names for row in _rows(path, Launcher(found, each, _tell))]
    if as_json:
        print_json(rows)
        return
    _show(rows)


@app.command()
def start(
    name: Launchers,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many machines.")] = 1,
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
) -> None:
    """Start machines; each is a worker in fleet.yaml once its ComfyUI answers."""
    from comfyfleet.cli.configure import config_path, read_config
    from comfyfleet.fleet.launcher import Launcher
    from comfyfleet.fleet.rental import rent

    launcher = Launcher(read_config(file, comfyui), name, _tell)
    rent(config_path(file, comfyui), launcher, count, _tell)


@app.command()
def stop(
    name: Launchers,
    machine: Annotated[str, typer.Argument(metavar="ID|all", help="Its id or name, or all.")],
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
) -> None:
    """End machines for good, and take their workers out of fleet.yaml."""
    from comfyfleet.cli.configure import config_path, read_config
    from comfyfleet.fleet.launcher import Launcher
    from comfyfleet.fleet.rental import give_back

    launcher = Launcher(read_config(file, comfyui), name, _tell)
    give_back(config_path(file, comfyui), launcher, machine, _tell)


def _rows(path: Path, launcher: Any) -> list[dict[str, Any]]:
    from comfyfleet.config import load
    from comfyfleet.fleet.rental import gone

    machines, own = launcher.machines(), launcher.entry.name
    workers = {each.name for each in load(path).workers}
    rows = [
        {"launcher": own, "name": each.name, "id": each.id, "url": each.url,
         "state": "worker" if each.name in workers else "no worker: stop it"}
        for each in machines
    ]  # fmt: skip
    return rows + [
        {"launcher": own, "name": each, "id": "", "url": "", "state": "gone: stop takes it out"}
        for each in gone(path, launcher, machines)
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    from comfyfleet.cli.show import console

    table = Table("launcher", "name", "id", "url", "state")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    console.print(table if rows else "no machine is there")


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
