"""Failures without the secrets of the client whose prompt it was: they are shown to everybody."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from comfyfleet.work import Failure, Unit

#: What a client sends along that nobody else may see has such a word in its name.
_WORDS = ("token", "key", "secret", "password")
_SHORTEST = 8


def without_secrets(failure: Failure, unit: Unit) -> Failure:
    """The failure of this unit, as anybody may see it."""
    secrets = _secrets_of(unit.mirrored.extra_data) if unit.mirrored else ()
    message = without(failure.message, secrets)
    return replace(failure, message=message, traceback=without(failure.traceback, secrets))


def without(text: str, secrets: Iterable[str]) -> str:
    """The text with each of the secrets made unreadable."""
    for secret in secrets:
        text = text.replace(secret, "(secret)")
    return text


def secrets_of_environment(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What variables hold whose names say that it is a secret; short words are none."""
    return tuple(
        value
        for name, value in environ.items()
        if len(value) >= _SHORTEST and any(word in name.lower() for word in _WORDS)
    )


def _secrets_of(extra_data: Mapping[str, Any]) -> tuple[str, ...]:
    """What nodes of a prompt may need of its client, such as a token of a paid service."""
    return tuple(
        value
        for name, value in extra_data.items()
        if isinstance(value, str) and value and any(word in name.lower() for word in _WORDS)
    )
