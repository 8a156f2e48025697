"""Work in the background: its result, its error, and a process that ends does not wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from comfyfleet.client.background import in_background

LEAVING = """
import asyncio, threading
from comfyfleet.client.background import in_background

async def main():
    begun = threading.Event()
    def work():
        begun.set()
        threading.Event().wait()
    task = asyncio.ensure_future(in_background(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()

asyncio.run(main())
"""


def test_it_gives_what_the_work_gives() -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await in_background(divmod, 1, 0)
        return await in_background(max, 3, 4)

    assert asyncio.run(main()) == 4


def test_leaving_does_not_wait_for_it() -> None:
    subprocess.run([sys.executable, "-c", LEAVING], check=True, timeout=60)
