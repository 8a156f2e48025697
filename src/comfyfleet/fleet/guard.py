"""A small process that outlives its owner for a moment, to leave nothing behind.

The owner holds the write end of this process's standard input. When that closes, because the
owner said so or because it died in whatever way, the guard ends every process that carries the
session's mark in its environment and removes the session's folder. Run as a script, by path: it
imports nothing of ours, so it starts in milliseconds.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import psutil

#: Environment variable that marks every process of a session with the session's folder.
SESSION_MARK = "COMFYFLEET_SESSION"

#: Option of the script: live on as a process that is no child of the owner.
DETACH = "--detach"


def members(session: str) -> Iterator[psutil.Process]:
    """Processes that were started inside this session (never this one or its parent)."""
    own = {os.getpid(), os.getppid()}
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(SESSION_MARK) == session:
                yield process
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to somebody else


def end_members(session: str) -> None:
    """End the session's processes; again until nobody is left."""
    for _ in range(20):
        found = [each for member in members(session) for each in _family(member)]
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue  # it ended meanwhile; what cannot be ended is found again below
        if not psutil.wait_procs(found, timeout=1.0)[1] and not found:
            break


def sweep(session: str) -> None:
    """End the session's processes and remove its folder."""
    end_members(session)
    shutil.rmtree(session, ignore_errors=True)


def _family(process: psutil.Process) -> list[psutil.Process]:
    """It and all that it has started: a process that renames itself may overwrite its mark."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def main() -> None:
    session, *options = sys.argv[1:]
    # The owner is a worker of Ray, which ends its child processes when it ends: be none of them.
    if DETACH in options and os.fork():
        return
    sys.stdin.buffer.read()
    sweep(session)


if __name__ == "__main__":
    main()
