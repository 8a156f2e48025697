"""fleet.yaml for the commands: which one it is, what it says, and changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from comfyfleet import config
from comfyfleet.cli.status import print_json
from comfyfleet.config import Config
from comfyfleet.errors import InputError
from comfyfleet.fleet.registry import read_masters


def config_path(given: Path | None, comfyui: str | None) -> Path:
    """The file named by ``--config``, or that of the ComfyUI that would run."""
    if given is not None:
        return given
    return config.find_comfyui(comfyui) / "user" / "comfyfleet" / config.FILE_NAME


def owners_path(given: Path | None, comfyui: str | None) -> Path:
    """The file that its owner means: if none is named, that of the ComfyUI that runs here.

    Raises InputError if several run.
    """
    folders = sorted({each.folder for each in read_masters()})
    if given is not None or comfyui is not None or not folders:
        return config_path(given, comfyui)
    if len(folders) > 1:
        raise InputError(f"several ComfyUIs run here ({', '.join(folders)}): say --config FILE.")
    return Path(folders[0]) / config.FILE_NAME


def owners_config(given: Path | None, comfyui: str | None) -> Config:
    """What is set in ``owners_path``. Raises InputError as ``read_config``."""
    if given is not None:
        return read_config(given, comfyui)
    return config.load(owners_path(given, comfyui))


def read_config(given: Path | None, comfyui: str | None) -> Config:
    """What is set. Raises InputError for a wrong file, and for a named one that is not there."""
    if given is not None and not given.is_file():
        raise InputError(f"--config {given}: there is no such file. Give a fleet.yaml.")
    return config.load(config_path(given, comfyui))


def chosen_workers(given: str | None, found: Config) -> str:
    """The devices that ``--workers`` or a setting asks for."""
    return found.value(config.WORKERS) if given is None else given


def show(found: Config, *, as_json: bool) -> None:
    """Print everything that is set."""
    shown = found.shown()
    if as_json:
        print_json(shown)
        return
    settings = Table("setting", "value", "from", "variable", title=escape(shown["path"]))
    for key, each in shown["settings"].items():
        settings.add_row(key, config.text_of(each["value"]), each["source"], each["env"])
    console = Console()
    console.print(settings)
    if shown["workers"]:
        console.print(_workers_table(shown["workers"]))


def _workers_table(workers: list[dict[str, Any]]) -> Table:
    table = Table("worker", "url", "enabled", "token", "ca")
    for each in workers:
        token = each.get("token_file") or each.get("token_env") or "none"
        cells = (each["name"], each["url"], config.text_of(each["enabled"]), token)
        table.add_row(*(escape(cell) for cell in (*cells, each.get("ca", ""))))
    return table


def set_setting(path: Path, key: str, value: str) -> None:
    """Set a setting, and say if it has no effect."""
    config.set_setting(path, key, value)
    typer.echo(f"{key} is set in {path}")
    _tell_if_hidden(path, key)


def unset_setting(path: Path, key: str) -> None:
    """Take a setting out, and say if that has no effect."""
    config.unset_setting(path, key)
    typer.echo(f"{key} is not set in {path}")
    _tell_if_hidden(path, key)


def _tell_if_hidden(path: Path, key: str) -> None:
    setting = config.setting_of(key)
    if config.load(path).source(setting) == "environment":
        typer.echo(f"note: {setting.env} is set here, and wins over the file")


def add_worker(path: Path, entry: Mapping[str, Any], files: Mapping[str, Path | None]) -> None:
    """Add a worker; ``files`` are named as seen from here."""
    named = {key: _seen_from(path, file) for key, file in files.items() if file is not None}
    config.add_worker(path, {**entry, **named})
    typer.echo(f"worker {entry['name']} is in {path}")
    _tell_if_unusable(path, entry["name"])


def _seen_from(path: Path, file: Path) -> str:
    folder, whole = path.resolve().parent, file.resolve()
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)


def _tell_if_unusable(path: Path, name: str) -> None:
    found = config.load(path)
    try:
        found.remote(next(entry for entry in found.workers if entry.name == name))
    except InputError as error:
        typer.echo(f"note: {error}")


def remove_worker(path: Path, name: str) -> None:
    """Take a worker out."""
    config.remove_worker(path, name)
    typer.echo(f"worker {name} is no longer in {path}")


def import_file(path: Path, source: Path) -> None:
    """Take over a gpu_config.json, and say what became of each part of it."""
    done = config.import_file(path, source)
    typer.echo(f"taken over into {path}:")
    for entry in done.workers:
        typer.echo(f"  worker {entry.name}: {entry.url}{'' if entry.enabled else ' (not enabled)'}")
    for key, value in done.settings.items():
        typer.echo(f"  {key}: {config.text_of(value)}")
    if not done.workers and not done.settings:
        typer.echo("  nothing")
    typer.echo("not taken over:")
    for sentence in done.left or ["nothing"]:
        # What others wrote may steer the terminal.
        typer.echo("  " + "".join(char if char.isprintable() else "?" for char in sentence))
