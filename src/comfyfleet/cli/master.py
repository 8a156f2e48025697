"""The ComfyUI with a fleet that runs on this machine, asked through its routes."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet.registry import FleetRecord, read_records

#: Where ComfyUI listens if nobody chose another place.
_DEFAULT_URL = "http://127.0.0.1:8188"
_BASE = "/comfyfleet/v1"
_TIMEOUT_S = 15.0


class MasterClient:
    """Asks one ComfyUI. Raises InputError for what it refuses, FleetError for what it cannot."""

    def __init__(self, url: str | None = None) -> None:
        """``url``: where it answers; by default what the fleets' records say."""
        self.url = _checked(url) if url else _find_url(read_records())
        # Never through a proxy: what is found is this machine. A certificate for its loopback
        # address does not exist, and what is found lies in a record that only its user can write.
        context = ssl.create_default_context()
        if not url:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def get(self, path: str) -> dict[str, Any]:
        """Ask for what is below /comfyfleet/v1."""
        return self._ask(urllib.request.Request(self.url + _BASE + path), _TIMEOUT_S)

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """Send JSON to what is below /comfyfleet/v1."""
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + _BASE + path, data, headers), timeout_s)

    def _ask(self, request: urllib.request.Request, timeout_s: float) -> dict[str, Any]:
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, ValueError) as error:
            raise FleetError(
                f"no ComfyUI answers at {self.url}: {error}. Start it, or give its address "
                "by --url."
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> InputError | FleetError:
        try:
            message = str(json.load(error)["error"])
        except (ValueError, TypeError, KeyError):
            return FleetError(
                f"what answers at {self.url} has no such route of ComfyFleet (HTTP {error.code}). "
                "Install the same version there, or give another address by --url."
            )
        return InputError(message) if error.code < 500 else FleetError(message)


def _find_url(records: list[FleetRecord]) -> str:
    urls = sorted({record.url for record in records if record.url})
    if len(urls) > 1:
        raise InputError(f"several ComfyUIs here have a fleet: {', '.join(urls)}; choose by --url.")
    if urls:
        return urls[0]
    if records:
        owners = ", ".join(str(record.owner_pid) for record in records)
        raise FleetError(
            f"the only fleets here belong to commands (process {owners}), which have no routes. "
            "Start ComfyUI with the extension, or give its address by --url."
        )
    return _DEFAULT_URL


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url {url!r}: give an address such as {_DEFAULT_URL}.")
    return url.rstrip("/")
