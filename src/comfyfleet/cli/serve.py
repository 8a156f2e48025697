"""``comfyfleet serve``: a door with a token, and TLS, before the ComfyUI of this machine."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from comfyfleet.cli.master import own_comfyui, read_token
from comfyfleet.cli.show import console
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.config import find_comfyui
from comfyfleet.errors import InputError, Unreachable
from comfyfleet.fleet.interrupt import run
from comfyfleet.fleet.proxy import Listening, Proxy
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens

#: Who holds the token that ``--token-file`` or ``--token-env`` names.
SERVED = "served"
_RETRY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Which ComfyUI is behind the door, and which token of the owner's making opens it too."""

    url: str | None
    token_file: Path | None = None
    token_env: str | None = None
    comfyui: str | None = None


def serve(
    door: Door, *, listen: str, port: int, tls_cert: Path | None, tls_key: Path | None
) -> None:
    """Let in who holds a token, until interrupted. Raises InputError, FleetError."""
    tls = _tls(tls_cert, tls_key)
    if tls is None and not _is_loopback(listen):
        sys.stderr.write(
            "comfyfleet: warning: without --tls-cert and --tls-key who listens on the way can read "
            "tokens and pictures.\n"
        )
    run(_serve(door, Listening(host=listen, port=port, tls=tls)))


async def _serve(door: Door, listening: Listening) -> None:
    async with opened(door, listening) as port:
        address = f"{'http' if listening.tls is None else 'https'}://{listening.host}:{port}"
        say(f"{address} asks for a token; Ctrl-C ends it")
        say("a token for another machine: comfyfleet pair")
        await asyncio.Event().wait()


@asynccontextmanager
async def opened(door: Door, listening: Listening) -> AsyncIterator[int]:
    """The port of a door that is open meanwhile, from when ComfyUI answers."""
    token = _given_token(door)
    url = own_comfyui(door.url)[0]
    await _wait_for(url)
    tokens = _tokens(door)
    tokens.prepare()
    if token:
        tokens.accept(SERVED, token)
    proxy = Proxy(url, tokens)
    port = await proxy.start(listening)
    try:
        yield port
    finally:
        await proxy.close()


def say(text: str) -> None:
    """A line as it is, however long."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


async def _wait_for(url: str) -> None:
    """In a container both start at once, and ComfyUI takes longer."""
    link = Link(Endpoint(url=url), patience_s=10.0)
    told = False
    try:
        while True:
            try:
                await link.ask("GET", "/system_stats")
                return
            except Unreachable as error:
                if not told:
                    say(f"{error} Waiting for it.")
                told = True
            await asyncio.sleep(_RETRY_S)
    finally:
        await link.close()


def _tokens(door: Door) -> Tokens:
    """Those of the ComfyUI if it has our extension; its routes then take the same ones."""
    folder = own_comfyui(door.url)[1] or find_comfyui(door.comfyui) / "user" / "comfyfleet"
    return Tokens(folder / TOKENS_FILE)


def _given_token(door: Door) -> str:
    if door.token_file is not None and door.token_env is not None:
        raise InputError("give --token-file or --token-env, not both.")
    if door.token_file is not None:
        return read_token(door.token_file)
    if door.token_env is None:
        return ""
    token = os.environ.get(door.token_env, "").strip()
    if not token:
        raise InputError(f"--token-env {door.token_env}: this variable is empty or not set.")
    return token


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InputError("give --tls-cert and --tls-key, both or none.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used: {error}. Give PEM files of a "
            "certificate and its key."
        ) from None
    return context


def _no_password() -> str:
    raise InputError("--tls-key: the key has a password; give one without.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
