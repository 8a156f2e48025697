"""What happens in a fleet, for whoever watches it."""

from __future__ import annotations

from comfyfleet.errors import RunError
from comfyfleet.fleet.run import RunEvent
from comfyfleet.work import Dispatch, Heal, Quarantine, RunSubmitted


class Ledger:
    """Written on the fleet's loop; may be read from any thread."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def begin(self, event: RunSubmitted) -> None:
        """A run was submitted."""

    def take(self, event: RunEvent) -> None:
        """Something happened to a unit."""

    def note(self, instruction: Quarantine | Heal) -> None:
        """Dispatch changed what it thinks of a worker."""

    def end(self, run_id: str, error: RunError | None) -> None:
        """A run ended."""
