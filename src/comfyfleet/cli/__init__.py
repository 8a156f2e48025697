"""The command ``comfyfleet``."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from comfyfleet.errors import ComfyFleetError, FleetError, InputError, RunCancelled

#: Exit codes, as the documentation lists them.
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_FLEET = 3
EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one message and an exit code."""
    from comfyfleet.cli.app import app

    # A service manager's stop is the same as Ctrl-C: workers are stopped either way.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        sys.exit(_report(error))


def exit_code(error: ComfyFleetError) -> int:
    """The exit code that an error of ours ends the command with."""
    if isinstance(error, InputError):
        return EXIT_BAD_INPUT
    if isinstance(error, FleetError):
        return EXIT_NO_FLEET
    if isinstance(error, RunCancelled):
        return EXIT_INTERRUPTED
    return EXIT_FAILED


def _report(error: Exception) -> int:
    import click

    if isinstance(error, click.exceptions.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return EXIT_BAD_INPUT
    if isinstance(error, ComfyFleetError):
        sys.stderr.write(f"comfyfleet: {error}\n")
        return exit_code(error)
    raise error


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
