"""``comfyfleet config``: parse, call, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comfyfleet.cli.options import AsJson, ComfyUI, ConfigFile

app = typer.Typer(help="Read and change fleet.yaml.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="A setting's key; see docs/configuration.md.")]
Name = Annotated[str, typer.Argument(help="What the worker is called.")]


@app.command()
def show(file: ConfigFile = None, comfyui: ComfyUI = None, as_json: AsJson = False) -> None:
    """Show all settings and where each comes from, and the workers on the network."""
    from comfyfleet.cli import configure

    configure.show(configure.owners_config(file, comfyui), as_json=as_json)


@app.command("set")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(help="Its value, as in the file.")],
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
) -> None:
    """Set a setting."""
    from comfyfleet.cli import configure

    configure.set_setting(configure.owners_path(file, comfyui), key, value)


@app.command()
def unset(key: Key, file: ConfigFile = None, comfyui: ComfyUI = None) -> None:
    """Take a setting out of the file, so that its default holds."""
    from comfyfleet.cli import configure

    configure.unset_setting(configure.owners_path(file, comfyui), key)


@app.command("add-worker")
def add_worker(
    name: Name,
    url: Annotated[str, typer.Argument(help="Where its ComfyUI answers.")],
    token_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds its token.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="The file, yours alone, that holds its token.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) that its own must be signed by.")
    ] = None,
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
) -> None:
    """Add a worker on the network."""
    from comfyfleet.cli import configure

    entry = {"name": name, "url": url, "token_env": token_env}
    files = {"token_file": token_file, "ca": ca}
    configure.add_worker(configure.owners_path(file, comfyui), entry, files)


@app.command("remove-worker")
def remove_worker(name: Name, file: ConfigFile = None, comfyui: ComfyUI = None) -> None:
    """Take a worker on the network out of the file."""
    from comfyfleet.cli import configure

    configure.remove_worker(configure.owners_path(file, comfyui), name)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The gpu_config.json of ComfyUI-Distributed.")],
    file: ConfigFile = None,
    comfyui: ComfyUI = None,
) -> None:
    """Take over workers and settings of ComfyUI-Distributed."""
    from comfyfleet.cli import configure

    configure.import_file(configure.owners_path(file, comfyui), source)


@app.command()
def path(file: ConfigFile = None, comfyui: ComfyUI = None) -> None:
    """Print where the file is, or would be."""
    from comfyfleet.cli import configure

    typer.echo(configure.owners_path(file, comfyui))
