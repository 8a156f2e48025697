"""What ComfyFleet sees of cloudflared: its line with the address, and a port that is passed on.

FAKE_LOG names the file that gets its process id and the port, as nobody can look up the address.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

SILENT, FAILING = "silent", "failing"


async def forward(url: str) -> None:
    target = urlsplit(url)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    with open(os.environ["FAKE_LOG"], "w") as file:
        file.write(f"{os.getpid()} {server.sockets[0].getsockname()[1]}\n")
    say("Requesting new quick Tunnel on trycloudflare.com...")
    if os.environ.get("FAKE_TUNNEL") == FAILING:
        sys.exit('failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": EOF')
    if os.environ.get("FAKE_TUNNEL") != SILENT:
        say("|  https://ten-towns-join.trycloudflare.com                    |")
    await server.serve_forever()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def say(text: str) -> None:
    sys.stderr.write(f"2026-01-16T08:32:58Z INF {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    words = sys.argv[1:]
    config = Path(words[words.index("--config") + 1]).read_text()
    assert words[0] == "tunnel" and config == "" and "TUNNEL_TOKEN" not in os.environ
    asyncio.run(forward(words[words.index("--url") + 1]))
