"""Pictures on their way as the peer sends them: each an 8-bit PNG in base64 in JSON, one after the
other. As a program it is the sender, which makes the pictures before it is told to begin:

    python -m benchmarks.peer URL COUNT SIDE CONTENT
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import urllib.request

import numpy as np
from aiohttp import web
from PIL import Image

from benchmarks.pictures import pictures


class Receiver:
    """Decodes what comes on its server's loop, as the peer does."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.images: list[np.ndarray] = []
        self.done = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        data = base64.b64decode(body["image"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            self.images.append(np.asarray(image.convert("RGB")).astype(np.float32) / 255.0)
        if len(self.images) == self._count:
            self.done.set()
        return web.json_response({"status": "success"})


def _send(url: str, images: np.ndarray) -> None:
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray((image * 255).astype(np.uint8)).save(file, "PNG", compress_level=0)
        text = base64.b64encode(file.getvalue()).decode()
        body = json.dumps({"batch_idx": number, "image": f"data:image/png;base64,{text}"})
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers)) as answer:
            answer.read()


def main() -> None:
    url, count, side, content = sys.argv[1:5]
    images = pictures(int(count), int(side), content)
    print("ready", flush=True)
    sys.stdin.readline()
    _send(url, images)


if __name__ == "__main__":
    main()
