"""A tunnel from the Internet to a port of this machine, by the owner's own cloudflared.

It must lead to a door that asks for a token (``fleet.proxy``), never to ComfyUI itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet.guard import SESSION_MARK

#: Where the program is, if it is not on PATH.
CLOUDFLARED = "CLOUDFLARED_PATH"
#: Until it says the address.
ADDRESS_S = 25.0
#: Its errors name the address of the service itself.
_ADDRESS = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com(?![\w.-])")
_END_S = 5.0
_LAST_CHARACTERS = 600


def find_cloudflared(environ: Mapping[str, str] = os.environ) -> str:
    """The owner's cloudflared. Raises InputError if there is none: it is never downloaded."""
    given = environ.get(CLOUDFLARED, "").strip()
    found = shutil.which(given or "cloudflared", path=environ.get("PATH"))
    if found is None:
        what = f"{CLOUDFLARED} {given!r} is no program" if given else "cloudflared is not on PATH"
        raise InputError(
            f"{what}. Install it (https://github.com/cloudflare/cloudflared), or set {CLOUDFLARED} "
            "to where it is."
        )
    return found


class Tunnel:
    """The program while it runs. It carries the mark of ``folder``, for a guard to end it."""

    def __init__(self, program: str, port: int, folder: Path) -> None:
        """Lead the Internet to this port of 127.0.0.1; see ``address``."""
        self._log = folder / "cloudflared.log"
        # Nothing that the owner has set for other tunnels may lead this one past the door.
        no_config = folder / "cloudflared.yml"
        no_config.write_text("")
        own = {name: os.environ[name] for name in os.environ if not name.startswith("TUNNEL_")}
        command = [program, "tunnel", "--config", str(no_config), "--no-autoupdate"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--url", f"http://127.0.0.1:{port}"],
                env={**own, SESSION_MARK: str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for us: we end it.
                start_new_session=True,
            )

    def address(self, timeout_s: float = ADDRESS_S) -> str:
        """Where it begins. Raises FleetError with the program's words if it does not say so."""
        pause = threading.Event()
        for _ in range(max(1, int(timeout_s / 0.1))):
            found = _ADDRESS.search(self._said())
            if found:
                return found[0]
            if not self.is_alive():
                raise FleetError(f"cloudflared has ended: {self.last_words()}")
            pause.wait(0.1)
        raise FleetError(f"cloudflared named no address in {timeout_s:g} s: {self.last_words()}")

    def is_alive(self) -> bool:
        """Does the program run?"""
        return self._process.poll() is None

    def end(self) -> None:
        """End it and all that it has started."""
        try:
            root = psutil.Process(self._process.pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        self._process.terminate()
        for process in psutil.wait_procs(family, _END_S)[1]:
            process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The end of what it has printed."""
        return self._said()[-_LAST_CHARACTERS:].strip() or "it printed nothing"

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")
