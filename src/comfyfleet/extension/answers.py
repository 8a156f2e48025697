"""What all of our routes have in common: their place, their errors, what they accept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from comfyfleet.errors import ComfyFleetError, InputError

BASE = "/comfyfleet/v1"

Answer = Callable[[web.Request], Awaitable[dict[str, Any]]]


class NotFound(InputError):
    """Something was named that is not there."""


def told(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    """JSON out; errors of ours as status and sentence."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await answer(request))
        except NotFound as error:
            return web.json_response({"error": str(error)}, status=404)
        except InputError as error:
            return web.json_response({"error": str(error)}, status=400)
        except ComfyFleetError as error:
            return web.json_response({"error": str(error)}, status=503)

    return handle


async def body_of(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises InputError."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object.")
    return body


def boolean(body: Mapping[str, Any], name: str) -> bool | None:
    """One field, None if it is not given. Raises InputError."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; give true or false.")
    return value


def seconds(body: Mapping[str, Any], name: str) -> float | None:
    """One field, a time up to a day; None if it is not given. Raises InputError."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400:
        raise InputError(f"{name} is {value!r}; give seconds, 0 to 86400.")
    return float(value)


def integer(text: str, name: str, low: int, high: int) -> int:
    """A number in a query. Raises InputError."""
    number = int(text) if text.isdecimal() and len(text) < 16 else low - 1
    if not low <= number <= high:
        raise InputError(f"{name} is {text!r}; give a whole number, {low} to {high}.")
    return number
