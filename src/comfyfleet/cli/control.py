"""``comfyfleet share`` and ``comfyfleet worker``: what the owner does with a running fleet."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from comfyfleet.cli.master import MasterClient
from comfyfleet.cli.show import console
from comfyfleet.errors import InputError

#: Switching it on may start the fleet, whose workers may need minutes for their packs.
_START_TIMEOUT_S = 600.0
#: What is said of each of ``api.routes.ACTIONS``.
_DONE = {
    "enable": "takes prompts",
    "disable": "finishes what it has and takes nothing more",
    "restart": "is being restarted",
    "interrupt": "was told to stop what it has in hand",
    "free": "was told to free its memory",
}


def share_queue(
    switch: str,
    *,
    master_computes: bool | None,
    stagger_s: float | None,
    url: str | None,
    token_file: Path | None,
) -> None:
    """Share the queue of a ComfyUI, or leave it to its master."""
    if switch not in ("on", "off"):
        raise InputError(f"share {switch!r}: give on or off.")
    body = {
        "on": switch == "on",
        "master_computes": master_computes,
        "stagger_s": stagger_s,
    }
    client = MasterClient(url, token_file)
    with console.status("starting workers if need be"):
        state = client.post("/share", body, timeout_s=_START_TIMEOUT_S)
    shared = f"shared, the master {'computes' if state['master_computes'] else 'does not compute'}"
    console.print(f"the queue of {client.url} is {shared if state['on'] else 'not shared'}")
    if state["note"]:
        console.print(state["note"])


def change_worker(worker: str, action: str, *, url: str | None, token_file: Path | None) -> None:
    """Do something with one worker, or with all."""
    if action not in _DONE:
        raise InputError(f"worker {worker} {action!r}: choose one of {', '.join(_DONE)}.")
    client = MasterClient(url, token_file)
    done = client.post(f"/workers/{quote(worker, safe='')}/{action}", {})
    for name in done["workers"]:
        console.print(f"worker {name} {_DONE[action]}")
