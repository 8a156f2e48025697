"""``comfyfleet pair`` and ``comfyfleet tokens``: who may ask a ComfyUI's fleet."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

from rich.table import Table
from rich.text import Text

from comfyfleet.api.routes import CODE_LENGTH
from comfyfleet.cli.master import MasterClient, is_loopback
from comfyfleet.cli.show import console
from comfyfleet.config import find_comfyui
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet.registry import read_masters
from comfyfleet.fleet.tokens import write_secret


def show_code(*, url: str | None, token_file: Path | None) -> None:
    """Print a code by which somebody else gets a token of the ComfyUI here."""
    client = MasterClient(url, token_file)
    found = client.post("/pairing", {})
    code, half = found["code"], CODE_LENGTH // 2
    console.print(f"the code is {code[:half]}-{code[half:]}, for {found['valid_s'] / 60:g} minutes")
    console.print(
        "on the other machine: comfyfleet pair URL CODE, where URL is this ComfyUI as seen from "
        "there",
        soft_wrap=True,
    )


def get_token(there: str, code: str | None, *, name: str | None, out: Path | None) -> None:
    """Get a token of our own for another ComfyUI, and keep it in a file."""
    if not code:
        raise InputError("give the code too: comfyfleet pair URL CODE.")
    client = MasterClient(there, with_token=False)
    if client.url.startswith("http:") and not is_loopback(client.url):
        sys.stderr.write(
            f"comfyfleet: warning: {client.url} is not encrypted: who listens on the way can read "
            "the token. Use https or a tunnel.\n"
        )
    file = out or paired_file(client.url)
    body = {"code": re.sub(r"[\s-]", "", code).upper(), "name": name or own_name()}
    token = client.post("/pair", body)["token"]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_secret(file, f"{token}\n")
    except OSError as error:
        raise FleetError(
            f"the token cannot be kept in {file}: {error}. Have it revoked there "
            f"(comfyfleet tokens revoke {body['name']}), and pair again with --out FILE."
        ) from error
    console.print(f"{client.url} knows this machine as {body['name']}", soft_wrap=True)
    console.print(f"token_file: {file}", soft_wrap=True)
    console.print(
        f"to use it as a worker: comfyfleet config add-worker NAME {client.url} "
        f"--token-file {file}",
        soft_wrap=True,
    )


def change_tokens(
    action: str, name: str | None, *, url: str | None, token_file: Path | None
) -> None:
    """List who holds a token, or take one back."""
    if action not in ("list", "revoke") or (action == "revoke") != bool(name):
        raise InputError(f"tokens {action!r}: give list, or revoke and a name.")
    client = MasterClient(url, token_file)
    if name:
        client.post(f"/tokens/{quote(name, safe='')}/revoke", {})
        console.print(Text(f"the token of {name} is revoked"))
        return
    table = Table("name", "since")
    for each in client.get("/tokens")["tokens"]:
        table.add_row(Text(each["name"]), Text(each["created"]))
    console.print(table if table.row_count else "nobody but the owner holds a token")


def paired_file(url: str) -> Path:
    """Where the token for a ComfyUI elsewhere is kept, unless somebody chose another place."""
    return _own_folder() / f"{_file_name(url)}.token"


def _own_folder() -> Path:
    """Where ComfyUI keeps what is ours, if it is clear which ComfyUI."""
    folders = sorted({master.folder for master in read_masters()})
    if len(folders) > 1:
        raise InputError(f"several ComfyUIs run here ({', '.join(folders)}): say --out FILE.")
    return Path(folders[0]) if folders else find_comfyui() / "user" / "comfyfleet"


def own_name() -> str:
    """What this machine is called elsewhere. Raises InputError if nothing of its name is left."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-")
    if not name:
        raise InputError("this machine has no name that could be used: say --name NAME.")
    return name


def _file_name(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return re.sub(r"[^A-Za-z0-9.-]", "-", f"{parts.hostname}-{port}").lstrip(".")
