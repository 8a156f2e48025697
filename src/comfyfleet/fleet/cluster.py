"""A Ray cluster of the owner's: where it is, what lets us in, and whether it keeps others out.

Ray runs the code of whoever reaches it, so a cluster that takes a wrong token is refused.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comfyfleet.config import CLUSTER, INSECURE_CLUSTER, Config
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet import cluster_probe

#: Where a head listens unless it is told otherwise.
DEFAULT_PORT = 6379
#: A head answers in milliseconds; one behind a slow link in a second.
_CONNECT_S = 5.0
#: The probe imports Ray, which takes seconds on a busy machine.
_PROBE_S = 60.0

_ADDRESS = re.compile(r"([\w.-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster by its head; ``insecure``: its owner insists on it without authentication."""

    host: str
    port: int
    token: str = field(default="", repr=False)
    insecure: bool = False

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def chosen_cluster(
    config: Config, given: str | None = None, *, insecure: bool = False
) -> Cluster | None:
    """The cluster that the owner named: by option, setting or RAY_ADDRESS; or None.

    Raises InputError for a wrong address, and if there is no token for it.
    """
    address = given or config.value(CLUSTER) or _address_of_ray(os.environ)
    if not address:
        return None
    host, port = parse_address(address)
    insecure = insecure or config.value(INSECURE_CLUSTER)
    token = read_token()
    if not token and not insecure:
        raise InputError(
            f"no token for the cluster at {host}:{port}. Put the one that `comfyfleet head` made "
            f"into {default_token_file()}, or name its file by RAY_AUTH_TOKEN_PATH."
        )
    return Cluster(host=host, port=port, token=token, insecure=insecure)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of a head. Raises InputError."""
    found = _ADDRESS.fullmatch(text.strip())
    port = int(found[2] or DEFAULT_PORT) if found else 0
    if found is None or not 1024 <= port <= 65535:
        raise InputError(
            f"{text!r} is no address of a Ray head: give HOST or HOST:PORT (1024 to 65535), such "
            f"as 192.168.1.5:{DEFAULT_PORT}; neither auto nor ray:// is taken."
        )
    return found[1], port


def default_token_file() -> Path:
    """Where Ray itself looks for the token of a cluster."""
    return Path.home() / ".ray" / "auth_token"


def read_token(given: Path | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """The token in a file, or as Ray finds it: variable, named file, default file; "" for none.

    Raises InputError for a named file that cannot be read, or is empty.
    """
    if given is None and (token := environ.get("RAY_AUTH_TOKEN", "").strip()):
        return token
    named = given or Path(environ.get("RAY_AUTH_TOKEN_PATH", "")).expanduser()
    if named == Path():
        named = default_token_file()
        if not named.exists():
            return ""
    try:
        token = named.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the cluster's token: {error}") from None
    if not token:
        raise InputError(f"the token file {named} is empty; copy the head's token into it.")
    return token


def own_address(host: str, port: int) -> str | None:
    """This machine's address as the head sees it; None if Ray has to find it by itself."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, port))  # sends nothing: it asks for the route
            address = str(route.getsockname()[0])
    except OSError:
        return None
    return None if address.startswith("127.") else address


def check_cluster(cluster: Cluster) -> bool:
    """Does the cluster ask for a token? Asked with a wrong one first, so as not to give ours away.

    Raises FleetError if nothing answers, if ours is not the cluster's, or if the cluster takes
    anybody and its owner does not insist.
    """
    answer = _probe(cluster, secrets.token_hex(32))
    if answer == cluster_probe.REFUSED:
        _check_token(cluster)
        return True
    if answer != cluster_probe.OPEN:
        raise FleetError(
            f"what answers at {cluster.address} is no Ray head ({answer.rstrip('.')}). Give the "
            "address that `comfyfleet head` prints."
        )
    if cluster.insecure:
        return False
    raise FleetError(
        f"the cluster at {cluster.address} asks for no token, so anybody who reaches it runs code "
        "on its machines. Start every node of it with RAY_AUTH_MODE=token (`comfyfleet head` and "
        "`comfyfleet join` do), or insist with --insecure-cluster (COMFYFLEET_INSECURE_CLUSTER=1)."
    )


def _check_token(cluster: Cluster) -> None:
    if not cluster.token:
        raise FleetError(
            f"the cluster at {cluster.address} asks for a token, and none is known here. Name the "
            "file that holds it by RAY_AUTH_TOKEN_PATH."
        )
    if _probe(cluster, cluster.token) == cluster_probe.REFUSED:
        raise FleetError(
            f"the token here is not that of the cluster at {cluster.address} (InvalidAuthToken). "
            "Copy the head's token file again."
        )


def _probe(cluster: Cluster, token: str) -> str:
    try:
        socket.create_connection((cluster.host, cluster.port), _CONNECT_S).close()
    except OSError as error:
        raise FleetError(
            f"nothing answers at {cluster.address} ({error}). Is the head running there, and does "
            "no firewall stand between?"
        ) from None
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [sys.executable, cluster_probe.__file__, cluster.address]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_S:.0f} s"
    return (done.stdout.splitlines() or [done.stderr[-300:].strip()])[-1]


def _address_of_ray(environ: Mapping[str, str]) -> str:
    """RAY_ADDRESS; "local" says that Ray is not to look for a cluster."""
    address = environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address
