"""``comfyfleet head`` and ``comfyfleet join HEAD``: this machine as a node of a Ray cluster.

Both stay until they are interrupted, and leave no process and no folder behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from comfyfleet.cli.show import console
from comfyfleet.config import find_comfyui
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet import guard
from comfyfleet.fleet.cluster import (
    Cluster,
    check_cluster,
    default_token_file,
    own_address,
    parse_address,
    read_token,
)
from comfyfleet.fleet.ray_node import NodePlan, RayNode
from comfyfleet.fleet.session import Session, python_path
from comfyfleet.planner import find_devices

#: Seconds before a node that was lost joins again; the last for ever.
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
#: Any address outside: the way there is the way to other machines. Nothing is sent.
_OUTSIDE = ("192.0.2.1", 9)


def join_cluster(
    head: str, *, token_file: Path | None, gpus: int | None, cpu_slots: int, comfyui: str | None
) -> None:
    """Offer this machine's devices to a cluster, and join again whenever the link was lost.

    Raises InputError for what is wrong here, FleetError if the first time does not succeed.
    """
    host, port = parse_address(head)
    token = read_token(token_file)
    if not token:
        raise InputError(
            f"no token for the cluster at {host}:{port}. Copy the file that `comfyfleet head` "
            f"names to {default_token_file()} here, or name it with --token-file."
        )
    environment = _environment(comfyui)
    cluster = Cluster(host=host, port=port, token=token)
    gpus = _offered(gpus, cpu_slots)
    check_cluster(cluster)
    with closing(Session()) as session:
        plan = NodePlan(
            folder=session.folder,
            token_file=session.write_token(token),
            head=cluster.address,
            port=port,
            address=own_address(host, port),
            gpus=gpus,
            cpu_slots=cpu_slots,
            environment=environment,
        )
        _stay(plan, f"{_counted(gpus, cpu_slots)} offered to the cluster at {cluster.address}")


def start_head(
    *,
    port: int,
    address: str | None,
    token_file: Path | None,
    gpus: int,
    cpu_slots: int,
    comfyui: str | None,
) -> None:
    """Start a cluster of which this machine is the head, and say how others join.

    Raises InputError for what is wrong here, FleetError if Ray does not start or ends.
    """
    file = token_file or default_token_file()
    address = address or own_address(*_OUTSIDE)
    if address is None:
        raise InputError("this machine's address is not known; give it with --address.")
    parse_address(f"{address}:{port}")
    environment = _environment(comfyui) if gpus or cpu_slots else {"PYTHONPATH": python_path()}
    token = _kept_token(file)
    with closing(Session()) as session:
        plan = NodePlan(
            folder=session.folder,
            token_file=session.write_token(token),
            head=None,
            port=port,
            address=address,
            gpus=gpus,
            cpu_slots=cpu_slots,
            environment=environment,
        )
        node = RayNode(plan)
        try:
            node.wait_until_up()
            _say_how(address, port, file)
            node.wait()
            raise FleetError(f"the head has ended: {node.last_words()}")
        finally:
            node.end()


def _stay(plan: NodePlan, joined: str) -> None:
    _join_once(plan, joined)
    pauses = _pauses()
    while True:
        time.sleep(next(pauses))
        begun = time.monotonic()
        try:
            _join_once(plan, joined)
        except FleetError as error:
            console.print(str(error))
        if time.monotonic() - begun > _PAUSES_S[-1]:
            pauses = _pauses()


def _join_once(plan: NodePlan, joined: str) -> None:
    """Be a node until the link is lost, for longer than Ray bears. Raises FleetError."""
    node = RayNode(plan)
    try:
        node.wait_until_up()
        console.print(f"{joined}. Ctrl-C to leave.")
        node.wait()
        console.print("the cluster is lost; joining again.")
    finally:
        node.end()
        _clear(plan)


def _clear(plan: NodePlan) -> None:
    """End what is left of the node, so that another can start in its place."""
    guard.end_members(str(plan.folder))
    shutil.rmtree(plan.ray_folder, ignore_errors=True)


def _pauses() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]


def _environment(comfyui: str | None) -> dict[str, str]:
    """What workers on this node need. Raises InputError without a ComfyUI."""
    return {"PYTHONPATH": python_path(), "COMFYUI_PATH": str(find_comfyui(comfyui))}


def _offered(gpus: int | None, cpu_slots: int) -> int:
    """How many GPUs to offer. Raises InputError if there is nothing to offer."""
    if gpus is None:
        gpus = sum(device.kind in ("cuda", "rocm") for device in find_devices())
    if not gpus and not cpu_slots:
        raise InputError("no GPU was found here; --cpu-slots 1 offers the CPU to one worker.")
    return gpus


def _counted(gpus: int, cpu_slots: int) -> str:
    kinds = {"GPU": gpus, "place on the CPU": cpu_slots}
    numbered = [f"{count} x {kind}" for kind, count in kinds.items() if count]
    return ", ".join(numbered)


def _kept_token(file: Path) -> str:
    """The token in the file, for its owner's eyes alone; made if there is none."""
    if file.exists():
        if file.stat().st_mode & 0o077:  # a secret that a container mounts is read-only
            file.chmod(0o600)
        return read_token(file)
    token = secrets.token_hex(32)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            target.write(token)
    except OSError as error:
        raise InputError(f"cannot write the token file {file}: {error}") from None
    return token


def _say_how(address: str, port: int, file: Path) -> None:
    lines = [
        f"The head of a cluster runs at {address}:{port}; its token is in {file}.",
        "On each other machine, with that file copied to the same place:",
        f"  comfyfleet join {address}:{port}{_option(file)}",
        "To use the cluster:",
        f"  comfyfleet run WORKFLOW --cluster {address}:{port}",
        "Ctrl-C ends it.",
    ]
    for line in lines:
        console.out(line, highlight=False)


def _option(file: Path) -> str:
    return "" if file == default_token_file() else f" --token-file {file}"
