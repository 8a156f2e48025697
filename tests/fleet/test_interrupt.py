"""Signals that come while a command's loop runs, each in a command of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: ``command`` is what the command does; its handlers are those of every command.
COMMAND = """
import asyncio, os, signal, sys
from collections import deque
from comfyfleet import cli
from comfyfleet.cli import app
from comfyfleet.fleet.interrupt import run

SIGNALS = [signal.Signals[name] for name in sys.argv[1:]]

def come():
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

{what}

async def work():
    try:
        await command()
    finally:
        await asyncio.sleep(0)
        print("tidied")

app.app = lambda: run(work())
cli.main()
"""

#: The next step is taken from the loop's list when they come.
IN_A_STEP_OF_THE_LOOP = """
class Ready(deque):
    def popleft(self):
        step = super().popleft()
        if SIGNALS:
            come()
            SIGNALS.clear()
        return step

async def command():
    loop = asyncio.get_running_loop()
    loop._ready = Ready(loop._ready)
    await asyncio.sleep(0)
    await asyncio.Event().wait()
"""

IN_A_STEP_OF_THE_WORK = """
async def command():
    come()
    await asyncio.Event().wait()
"""

AS_THE_WORK_ENDS = """
async def command():
    loop = asyncio.get_running_loop()
    loop.close = lambda close=loop.close: (come(), close())
"""


def outcome(what: str, *signals: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", COMMAND.replace("{what}", what), *signals]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("what", [IN_A_STEP_OF_THE_LOOP, IN_A_STEP_OF_THE_WORK, AS_THE_WORK_ENDS])
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGINT", "SIGTERM"]])
def test_it_tidies_up_and_ends(what: str, signals: list[str]) -> None:
    assert outcome(what, *signals) == (130, "tidied\n", "comfyfleet: interrupted\n")


def test_who_reads_what_it_says_may_be_gone() -> None:
    """As where Ctrl-C ends a whole pipeline, ``comfyfleet serve 2>&1 | tee log``."""
    what = COMMAND.replace("{what}", IN_A_STEP_OF_THE_WORK)
    command = [sys.executable, "-c", "import sys; input(); " + f"exec({what!r})", "SIGINT"]
    pipes = {each: subprocess.PIPE for each in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "tidied\n"
        assert process.wait(60) == 130
