"""The same pictures over a slow line: 100 Mbit/s each way, and 50 ms for a round trip.

A ComfyUI and its fleet are on two hosts, which are network namespaces of this machine.
``ratio_png`` is against the peer's way over the same line; ``overhead`` is the time over that which
the bytes that were sent need by themselves. As a program this module is the fleet's side:

    python -m benchmarks.wan fetch URL TOKEN CONTENT
    python -m benchmarks.wan receive ADDRESS CONTENT NAMESPACE
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.link import DEVICE
from benchmarks.namespaces import Host, two_hosts, why_not
from benchmarks.pictures import CONTENTS
from benchmarks.server import Server
from benchmarks.url import IMAGES, SIDE, fetched, sent_as_png
from comfyfleet.errors import InputError

MEGABITS_PER_S = 100.0
ROUND_TRIP_S = 0.05
ROUNDS = 3
#: IPv4 and TCP with time stamps, of each packet.
_HEADER_BYTES = 52
_ROOT = Path(__file__).resolve().parent.parent


def run() -> dict[str, Any]:
    """Each kind of picture; ``ratio_png`` and ``overhead`` are those of bfloat16."""
    if reason := why_not():
        raise InputError(f"no hosts can be made here: {reason}.")
    figures: dict[str, Any] = {"megabytes": round(IMAGES * SIDE * SIDE * 12 / 1e6, 1)}
    with two_hosts() as network, tempfile.TemporaryDirectory() as folder:
        there, here = network.hosts
        server = Server(Path(folder), "0", host=there)
        try:
            server.start()
            network.shape(delay_s=ROUND_TRIP_S / 2, megabits_per_s=MEGABITS_PER_S)
            for content in CONTENTS:
                rounds = ROUNDS if content == CONTENTS[0] else 1
                figures |= _measure(server, there, here, content, rounds)
        finally:
            server.end()
    first = {name: figures[f"{name}_{CONTENTS[0]}"] for name in ("ratio_png", "overhead")}
    return {**figures, **first}


def _measure(server: Server, there: Host, here: Host, content: str, rounds: int) -> dict[str, Any]:
    ours, png = [], []
    for _ in range(rounds):
        ours.append(_child(here, "fetch", server.url, server.token, content))
        png.append(_child(here, "receive", here.address, content, there.namespace)["seconds"])
    seconds = median(each["seconds"] for each in ours)
    own_s = median(each["bytes"] for each in ours) * 8 / (MEGABITS_PER_S * 1e6)
    return {
        f"seconds_{content}": [round(each["seconds"], 2) for each in ours],
        f"seconds_png_{content}": [round(each, 2) for each in png],
        f"megabytes_sent_{content}": round(ours[0]["bytes"] / 1e6, 1),
        f"ratio_png_{content}": round(median(png) / seconds, 3),
        f"overhead_{content}": round(seconds / own_s, 3),
    }


def _child(host: Host, *arguments: str) -> dict[str, float]:
    command = ["ip", "netns", "exec", host.namespace, sys.executable, "-m", "benchmarks.wan"]
    done = subprocess.run(
        [*command, *arguments], cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _received() -> int:
    """Bytes of content that have come to this host."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == DEVICE:
            total, packets = (int(each) for each in counts.split()[:2])
            return total - packets * _HEADER_BYTES
    return 0


async def _fetch(url: str, token: str, content: str) -> dict[str, float]:
    before = _received()
    seconds, _ = await fetched(url, token, content)
    return {"seconds": seconds, "bytes": _received() - before}


async def _receive(address: str, content: str, namespace: str) -> dict[str, float]:
    prefix = ["ip", "netns", "exec", namespace]
    return {"seconds": await sent_as_png(address, content, prefix)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = {"fetch": _fetch, "receive": _receive}[sys.argv[1]]
    print(json.dumps(asyncio.run(work(*sys.argv[2:]))))
