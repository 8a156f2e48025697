"""How fast values come from a ComfyUI elsewhere: 16 pictures of 1024x1024 float32, over loopback.

From the end of the prompt there to arrays in this process, against what the peer does with the same
pictures: 8-bit PNG, base64 and JSON, one request for each picture, and decoded here. Both ends are
processes of their own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import web

from benchmarks.peer import Receiver
from benchmarks.server import Server, comfyui_server
from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.work import Packed

IMAGES = 16
SIDE = 1024
ROUNDS = 5
_ROOT = Path(__file__).resolve().parent.parent


def run() -> dict[str, Any]:
    """Alternate both ways; each is judged by its median."""
    with comfyui_server(workers="0") as server:
        return asyncio.run(_measure(server))


async def _measure(server: Server) -> dict[str, Any]:
    ours, png = [], []
    for _ in range(ROUNDS):
        ours.append((await fetched(server.url, server.token, "bfloat16"))[0])
        png.append(await sent_as_png("127.0.0.1", "bfloat16"))
    size = IMAGES * SIDE * SIDE * 3 * 4
    return {
        "megabytes": round(size / 1e6, 1),
        "megabytes_per_second": round(size / median(ours) / 1e6),
        "seconds": [round(each, 3) for each in ours],
        "seconds_png": [round(each, 2) for each in png],
        "ratio_png": round(median(png) / median(ours), 1),
    }


async def fetched(url: str, token: str, content: str) -> tuple[float, Packed]:
    """Seconds to fetch the pictures that a prompt there has left, and the pictures."""
    link = Link(Endpoint(url=url, token=token), patience_s=60.0)
    prompt_id = uuid.uuid4().hex
    shape = {"count": IMAGES, "side": SIDE, "content": content}
    back = {"images": ["1", 0], "comfyfleet_attempt": prompt_id}
    prompt = {
        "1": {"class_type": "BenchPictures", "inputs": shape},
        "2": {"class_type": "FleetReturn", "inputs": back},
    }
    try:
        await ComfyClient(link).run(prompt, prompt_id, lambda fraction: None)
        begun = time.perf_counter()
        found = await Guest(link).fetch(prompt_id)
        seconds = time.perf_counter() - begun
        await Guest(link).forget(prompt_id)
    finally:
        await link.close()
    assert found is not None
    return seconds, found


async def sent_as_png(address: str, content: str, prefix: Sequence[str] = ()) -> float:
    """Seconds until the last picture is decoded here; ``prefix`` begins the sender's command."""
    receiver = Receiver(IMAGES)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    port = runner.addresses[0][1]
    command = [*prefix, sys.executable, "-m", "benchmarks.peer", f"http://{address}:{port}/"]
    command += [str(IMAGES), str(SIDE), content]
    sender = await asyncio.create_subprocess_exec(
        *command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert sender.stdin is not None and sender.stdout is not None
    await sender.stdout.readline()
    begun = time.perf_counter()
    sender.stdin.write(b"go\n")
    await asyncio.wait_for(receiver.done.wait(), 600)
    seconds = time.perf_counter() - begun
    await sender.wait()
    await runner.cleanup()
    return seconds
