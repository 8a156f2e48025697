"""The ComfyUI with a fleet that runs on this machine, asked through its routes."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from comfyfleet.api import BASE
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet.registry import FleetRecord, read_masters, read_records
from comfyfleet.fleet.tokens import TOKENS_FILE, own_token, read_secret

#: Where ComfyUI listens if nobody chose another place.
DEFAULT_URL = "http://127.0.0.1:8188"
_TIMEOUT_S = 15.0
#: Where a token may stand. No setting: settings are shown.
TOKEN = "COMFYFLEET_TOKEN"


class MasterClient:
    """Asks one ComfyUI. Raises InputError for what it refuses, FleetError for what it cannot."""

    def __init__(
        self,
        url: str | None = None,
        token_file: Path | None = None,
        *,
        with_token: bool = True,
    ) -> None:
        """``url``: where it answers; by default what the fleets' records say.

        Its token is that of ``token_file``, of COMFYFLEET_TOKEN, or the owner's of a ComfyUI here.
        """
        self.url = _checked(url) if url else _find_url(read_records())
        self._token = _token_for(self.url, token_file) if with_token else ""
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
        return self._ask(urllib.request.Request(self.url + BASE + path), _TIMEOUT_S)

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """Send JSON to what is below /comfyfleet/v1."""
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + BASE + path, data, headers), timeout_s)

    def _ask(self, request: urllib.request.Request, timeout_s: float) -> dict[str, Any]:
        if self._token:  # unredirected: it is for this place, wherever its answer points
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
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
    """The ComfyUI of this user that has a fleet, or else the one that there is."""
    urls = {record.url for record in records if record.url}
    urls = urls or {each.url for each in read_masters()}
    if len(urls) > 1:
        raise InputError(f"several ComfyUIs run here: {', '.join(sorted(urls))}; choose by --url.")
    if urls:
        return urls.pop()
    if records:
        owners = ", ".join(str(record.owner_pid) for record in records)
        raise FleetError(
            f"the only fleets here belong to commands (process {owners}), which have no routes. "
            "Start ComfyUI with the extension, or give its address by --url."
        )
    return DEFAULT_URL


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url {url!r}: give an address such as {DEFAULT_URL}.")
    try:
        urlsplit(url).port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise InputError(f"--url {url!r}: {error}.") from None
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Does this address lead to this very machine?"""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def own_comfyui(url: str | None) -> tuple[str, Path | None]:
    """Address and owner's folder (None: it has no extension) of the ComfyUI of this machine.

    Raises InputError for an address elsewhere, and if it is not clear which one is meant.
    """
    masters = {each.url: Path(each.folder) for each in read_masters()}
    if url is None and len(masters) > 1:
        raise InputError(f"several ComfyUIs run here: {', '.join(masters)}; choose by --url.")
    own = (url or next(iter(masters), DEFAULT_URL)).rstrip("/")
    if not own.startswith("http://") or not is_loopback(own):
        raise InputError(f"--url {own!r}: give a ComfyUI of this machine, such as {DEFAULT_URL}.")
    folder = next((masters[each] for each in masters if _is_same_place(each, own)), None)
    return own, folder


def _token_for(url: str, token_file: Path | None) -> str:
    """Empty if none is known: what needs one says so."""
    if token_file is not None:
        return read_token(token_file)
    if os.environ.get(TOKEN, "").strip():
        return os.environ[TOKEN].strip()
    here = (Path(each.folder) for each in read_masters() if _is_same_place(each.url, url))
    folder = next(here, None)
    return own_token(folder / TOKENS_FILE) if folder else ""


def read_token(file: Path) -> str:
    """The token that a file holds. Raises InputError."""
    try:
        token = read_secret(file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {str(file)!r} cannot be read: {error}.") from None
    if not token.isascii() or not token.isprintable() or not token:
        raise InputError(f"--token-file {str(file)!r} holds no token: one line is expected.")
    return token


def _is_same_place(ours: str, given: str) -> bool:
    """The same port of this machine? An owner's token goes nowhere else."""
    a, b = urlsplit(ours), urlsplit(given)
    if (a.scheme, a.port) != (b.scheme, b.port):
        return False
    return a.hostname == b.hostname or (is_loopback(ours) and is_loopback(given))
