"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ComfyUI = Annotated[
    str | None,
    typer.Option("--comfyui", help="The ComfyUI to run (default: COMFYUI_PATH, or the nearest)."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="The fleet.yaml (default: the one in ComfyUI's user folder)."),
]
Workers = Annotated[
    str | None,
    typer.Option(
        help="auto, a number, or a list of devices such as cuda:0,cuda:1 or cpu,cpu "
        "(default: COMFYFLEET_WORKERS, or what fleet.yaml says).",
    ),
]
Url = Annotated[
    str | None,
    typer.Option("--url", help="The ComfyUI to ask (default: the one here that has a fleet)."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with its token (default: COMFYFLEET_TOKEN)."),
]
