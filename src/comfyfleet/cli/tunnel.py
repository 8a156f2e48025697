"""``comfyfleet tunnel``: this machine's ComfyUI from the Internet, for who holds a token."""

from __future__ import annotations

import asyncio
from contextlib import closing

from comfyfleet.cli.serve import Door, opened, say
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet.interrupt import run
from comfyfleet.fleet.proxy import Listening
from comfyfleet.fleet.session import Session
from comfyfleet.fleet.tunnel import ADDRESS_S, Tunnel, find_cloudflared

#: What is done on the other machine, for what this ComfyUI shall be to it.
_USES = {
    "worker": "comfyfleet config add-worker NAME {address} --token-file FILE",
    "master": "comfyfleet join {address}",
}
_LOOK_S = 1.0


def open_tunnel(door: Door, use: str, *, timeout_s: float = ADDRESS_S) -> None:
    """Keep a tunnel until interrupted, or until it ends. Raises InputError, FleetError."""
    if use not in _USES:
        raise InputError(f"--for {use!r}: give {' or '.join(_USES)}.")
    run(_keep(door, use, find_cloudflared(), timeout_s))


async def _keep(door: Door, use: str, program: str, timeout_s: float) -> None:
    # The session's guard ends the program if we are killed.
    async with opened(door, Listening()) as port:
        with closing(Session()) as session:
            tunnel = Tunnel(program, port, session.folder)
            try:
                address = await asyncio.to_thread(tunnel.address, timeout_s)
                _say_how(address, use)
                while tunnel.is_alive():
                    await asyncio.sleep(_LOOK_S)
                raise FleetError(f"the tunnel has ended: {tunnel.last_words()}")
            finally:
                tunnel.end()


def _say_how(address: str, use: str) -> None:
    for line in (
        f"{address} leads here, for who holds a token. Ctrl-C ends it.",
        "here:                   comfyfleet pair",
        f"on the other machine:   comfyfleet pair {address} CODE",
        f"                        {_USES[use].format(address=address)}",
    ):
        say(line)
