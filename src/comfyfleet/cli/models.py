"""``comfyfleet models``: parse, call, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comfyfleet.cli.options import AsJson, TokenFile, Url

app = typer.Typer(help="See which worker has which model, and copy models.", no_args_is_help=True)


@app.command()
def check(
    workflow: Annotated[Path, typer.Argument(help="A workflow in API format (JSON).")],
    as_json: AsJson = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Show what of a workflow's models and node classes each worker has. Nothing runs."""
    from comfyfleet.cli.copying import check_models

    check_models(workflow, as_json=as_json, url=url, token_file=token_file)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="The model's file, as loaders show it.")],
    to: Annotated[str, typer.Option("--to", help="A worker elsewhere.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="The worker elsewhere that has it, if not this machine."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Its model folder (default: the one that has it).")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Copy a model to a worker. Ctrl-C stops; the next copy goes on from there."""
    from comfyfleet.cli.copying import copy_model

    copy_model(name, to, source=source, folder=folder, url=url, token_file=token_file)


@app.command()
def copies(as_json: AsJson = False, url: Url = None, token_file: TokenFile = None) -> None:
    """Show the copies that wait, run, or have ended."""
    from comfyfleet.cli.copying import show_copies

    show_copies(as_json=as_json, url=url, token_file=token_file)
