"""The command ``comfyfleet``."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from comfyfleet.errors import ComfyFleetError, FleetError, InputError

#: Exit codes, as the documentation lists them.
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_FLEET = 3
EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one message and an exit code."""
    from comfyfleet.cli.app import app

    # SystemExit runs every clean-up on its way out, and the command line library leaves it alone.
    # A service manager's stop is the same as Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(app())
    except ComfyFleetError as error:
        sys.stderr.write(f"comfyfleet: {error}\n")
        sys.exit(exit_code(error))


def exit_code(error: ComfyFleetError) -> int:
    """The exit code that an error of ours ends the command with."""
    if isinstance(error, InputError):
        return EXIT_BAD_INPUT
    if isinstance(error, FleetError):
        return EXIT_NO_FLEET
    return EXIT_FAILED


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    # Ctrl-C may have ended who reads it, or come while something is written there.
    with suppress(OSError, RuntimeError):
        sys.stderr.write("comfyfleet: interrupted\n")
    sys.exit(EXIT_INTERRUPTED)
