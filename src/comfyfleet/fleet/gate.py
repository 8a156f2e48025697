"""Who is let in to our routes. Plain data in, a name or an AccessError out."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from comfyfleet.api import Access
from comfyfleet.errors import AccessError
from comfyfleet.fleet.pairing import Failures
from comfyfleet.fleet.tokens import OWNER, PAGE, Tokens

_NETLOC = re.compile(r"[\w.:\[\]%-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: A proxy says by these that who asks is not who connects.
_FORWARDED = (
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Port", "X-Forwarded-Server", "X-Real-IP", "X-Client-IP", "True-Client-IP"),
    "CF-Connecting-IP",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What of a request says who asks. ``headers`` must not mind upper and lower case."""

    scheme: str
    #: Who has connected; empty if nobody knows.
    address: str
    headers: Mapping[str, str]
    #: The version of HTTP that it speaks.
    version: tuple[int, int] = (1, 1)

    @property
    def host(self) -> str:
        """The name that this ComfyUI is called by, without the port."""
        return _host_of(self.headers.get("Host", ""))

    @property
    def is_here(self) -> bool:
        """True if it is a program on this machine, and no proxy that speaks for others."""
        near = _is_loopback(self.address) and _is_loopback(self.host)
        # No browser speaks HTTP/1.0, but nginx does, as our own Host, if it is told nothing else.
        direct = self.version > (1, 0) and not any(name in self.headers for name in _FORWARDED)
        return near and direct


class Gate:
    """Decides by token, and by what a browser says of the page that asks."""

    def __init__(
        self,
        tokens: Tokens,
        hosts: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``hosts``: further names that this ComfyUI may be called by in a browser."""
        self._tokens = tokens
        self._hosts = {each.lower().rstrip(".") for each in (*hosts, *_own_names())}
        self._failures = Failures(clock=clock)

    def admit(self, caller: Caller, access: Access) -> str:
        """Who asks: OWNER, PAGE, or the name of who holds the token.

        Raises AccessError (401, 403 or 429) for whoever may not, FleetError if the file of tokens
        cannot be used.
        """
        authorization = caller.headers.get("Authorization")
        if access is Access.CODE:
            return self._admit_stranger(caller)
        if authorization is not None:
            return self._admit_token(caller, authorization, access)
        return self._admit_page(caller, access)

    def failed(self, caller: Caller) -> None:
        """A token, or a code, was wrong."""
        self._failures.add(caller.address)

    def _admit_stranger(self, caller: Caller) -> str:
        """The code decides: by whatever name a command calls us. A foreign page still has none."""
        _check_origin(caller)
        self._slow_down(caller)
        return ""

    def _admit_token(self, caller: Caller, authorization: str, access: Access) -> str:
        """A right token may come from anywhere: no page can make a browser send it."""
        kind, _, token = authorization.partition(" ")
        name = self._tokens.holder(token.strip()) if kind.lower() == "bearer" else None
        if name is None:
            self._slow_down(caller)
            self.failed(caller)
            raise AccessError(
                401, "this token is not valid, or was revoked: get one by `comfyfleet pair`."
            )
        if access is Access.OWNER and name != OWNER:
            raise AccessError(403, "only the owner's own token may do this.")
        return name

    def _admit_page(self, caller: Caller, access: Access) -> str:
        self._check_host(caller)
        _check_origin(caller)
        if access is Access.TOKEN or not _is_own_page(caller):
            raise AccessError(
                401,
                "this needs a token, as `Authorization: Bearer TOKEN`: get one by "
                "`comfyfleet pair`.",
            )
        if access is Access.OWNER and not caller.is_here:
            raise AccessError(
                403,
                "from a page this works only on the machine that ComfyUI runs on, at its loopback "
                "address; use the command there.",
            )
        return PAGE

    def _check_host(self, caller: Caller) -> None:
        """Refuse names that somebody else may have given to our address (DNS rebinding)."""
        if not self._is_known(caller.host):
            raise AccessError(
                403,
                f"{caller.host[:80]!r} is no name of this machine. If it is yours, let it "
                "be known (`comfyfleet config set hosts NAME`) and start ComfyUI again; or use a "
                "token.",
            )

    def _is_known(self, host: str) -> bool:
        return host in self._hosts or _is_loopback(host) or _is_address(host)

    def _slow_down(self, caller: Caller) -> None:
        wait_s = self._failures.wait_s(caller.address)
        if wait_s:
            raise AccessError(
                429,
                f"too many wrong tokens or codes from {caller.address}: wait {wait_s:.0f} s.",
                wait_s=int(wait_s) + 1,
            )


def _check_origin(caller: Caller) -> None:
    if _is_foreign(caller):
        raise AccessError(403, "a page of another origin may not ask this.")


def _is_foreign(caller: Caller) -> bool:
    """Does the browser say that a page from elsewhere asks?"""
    site, origin = caller.headers.get("Sec-Fetch-Site"), caller.headers.get("Origin")
    if site not in (None, "same-origin", "none"):
        return True
    if origin is None:
        return False
    if site == "same-origin":  # a proxy may have taken off TLS: the browser knows better
        return _host_of(_netloc_of(origin)) != caller.host
    return not _is_origin(origin, caller)


def _is_own_page(caller: Caller) -> bool:
    """Does the browser say that our own page asks?

    Where a page came by plain HTTP from another machine, it says neither ``Sec-Fetch-Site`` nor,
    for GET, ``Origin``. No page can choose its Referer's origin.
    """
    site = caller.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    said = caller.headers.get("Origin") or caller.headers.get("Referer", "")
    return _is_origin(said, caller)


def _is_origin(said: str, caller: Caller) -> bool:
    ours = f"{caller.scheme}://{caller.headers.get('Host', '')}"
    return _place(said) is not None and _place(said) == _place(ours)


def _place(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no address of the web."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return None
    if scheme not in _DEFAULT_PORTS or not host:
        return None
    return scheme, host.rstrip("."), port or _DEFAULT_PORTS[scheme]


def _netloc_of(url: str) -> str:
    """What stands between the scheme and the path; empty if that cannot be told."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _host_of(netloc: str) -> str:
    if not _NETLOC.fullmatch(netloc):  # what urlsplit would look for a user's name in
        return ""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    if not _is_address(host):
        return False
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {name, short, f"{short}.local"} - {""}
