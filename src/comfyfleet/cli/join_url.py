"""``comfyfleet join URL``: let a master elsewhere use the ComfyUI of this machine."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from comfyfleet.api import NAME_PATTERN
from comfyfleet.cli.master import TOKEN, own_comfyui, read_token
from comfyfleet.cli.pair import own_name, paired_file
from comfyfleet.cli.show import console
from comfyfleet.client.dial import serve
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.errors import InputError
from comfyfleet.fleet.tokens import TOKENS_FILE, own_token


def join_url(
    master: str,
    *,
    token: str | None,
    token_file: Path | None,
    name: str | None,
    ca: Path | None,
    url: str | None,
) -> None:
    """Stay joined until interrupted. ``url``: this machine's ComfyUI, if there are several.

    Raises InputError for what is wrong here or refused there, Unreachable if no ComfyUI runs here.
    """
    if not master.startswith(("http://", "https://")):
        raise InputError(f"join {master!r}: give an address such as https://studio.example.")
    called = name or own_name()
    if not re.fullmatch(NAME_PATTERN, called):
        raise InputError(f"--name {called!r}: give letters, digits, dots and dashes.")
    own_url, own_secret = _own_comfyui(url)
    there = Endpoint(url=master.rstrip("/"), token=_token_for(master, token, token_file), ca=ca)
    own = Endpoint(url=own_url, token=own_secret)
    asyncio.run(_serve(there, called, own))


async def _serve(there: Endpoint, name: str, own: Endpoint) -> None:
    link = Link(own, patience_s=10.0)
    try:
        await link.ask("GET", "/system_stats")
    finally:
        await link.close()
    console.print(f"offering {own.url} to {there.url}; Ctrl-C ends it", soft_wrap=True)
    await serve(there, name, own, lambda text: console.print(text, soft_wrap=True))


def _token_for(master: str, given: str | None, given_file: Path | None) -> str:
    """By option, by environment, or as it was kept when this machine was paired."""
    if given or (given_file is None and os.environ.get(TOKEN)):
        return given or os.environ[TOKEN].strip()
    file = given_file or paired_file(master)
    if given_file is not None or file.is_file():
        return read_token(file)
    raise InputError(
        f"no token for {master}. Run `comfyfleet pair` on its machine, then here "
        f"`comfyfleet pair {master} CODE`."
    )


def _own_comfyui(url: str | None) -> tuple[str, str]:
    """Address and token (empty: it has no extension) of the ComfyUI that is offered."""
    own, folder = own_comfyui(url)
    return own, own_token(folder / TOKENS_FILE) if folder else ""
