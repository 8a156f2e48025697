"""``comfyfleet join URL``: let a master elsewhere use the ComfyUI of this machine."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from comfyfleet.api import NAME_PATTERN
from comfyfleet.cli.master import TOKEN, is_loopback, own_comfyui, read_token
from comfyfleet.cli.pair import own_name, paired_file
from comfyfleet.cli.show import console
from comfyfleet.client.dial import serve
from comfyfleet.client.guest import BASE
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.errors import InputError
from comfyfleet.fleet.interrupt import run
from comfyfleet.fleet.proxy import Listening, Proxy
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens, own_token


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
    there = Endpoint(url=master.rstrip("/"), token=_token_for(master, token, token_file), ca=ca)
    if there.url.startswith("http:") and not is_loopback(there.url):
        console.print(f"warning: {there.url} is not encrypted; use https or a tunnel")
    run(_serve(there, called, *own_comfyui(url)))


async def _serve(there: Endpoint, name: str, url: str, folder: Path | None) -> None:
    link = Link(Endpoint(url=url), patience_s=10.0)
    try:
        await link.ask("GET", "/system_stats")
        status, _ = await link.ask("GET", f"{BASE}/hello")
    finally:
        await link.close()
    if folder is None and status == 401:  # without a door the master would count as its owner
        raise InputError(f"{url} has ComfyFleet, and another user's: join as the user who runs it.")
    console.print(f"offering {url} to {there.url}; Ctrl-C ends it", soft_wrap=True)
    async with _door(url, folder, there.url, name) as own:
        await serve(there, name, own, lambda text: console.print(text, soft_wrap=True))


@asynccontextmanager
async def _door(url: str, folder: Path | None, there: str, name: str) -> AsyncIterator[Endpoint]:
    """The way to our ComfyUI for the master: with a token of its own, valid for as long as this.

    Who came through the line directly would be a program on this machine to ComfyUI, and the owner.
    One without the extension has nothing that a token opens.
    """
    if folder is None:
        yield Endpoint(url=url)
        return
    tokens, holder = Tokens(folder / TOKENS_FILE), f"join-{name}"[:64]
    # The same each time: what the master has begun goes on when a lost line is made again.
    secret = own_token(folder / TOKENS_FILE).encode()
    token = hmac.new(secret, f"join {there} {name}".encode(), hashlib.sha256).hexdigest()
    tokens.accept(holder, token)
    try:
        proxy = Proxy(url, tokens)
        port = await proxy.start(Listening())
        try:
            yield Endpoint(url=f"http://127.0.0.1:{port}", token=token)
        finally:
            await proxy.close()
    finally:
        tokens.revoke(holder)


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
