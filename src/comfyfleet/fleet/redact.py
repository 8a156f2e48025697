"""Failures without the secrets of the client whose prompt it was: they are shown to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfyfleet.work import Failure, Unit

#: What a client sends along that nobody else may see has such a word in its name.
_WORDS = ("token", "key", "secret", "password")


def without_secrets(failure: Failure, unit: Unit) -> Failure:
    """The failure of this unit, as anybody may see it."""
    secrets = _secrets_of(unit.mirrored.extra_data) if unit.mirrored else ()
    message, traceback = failure.message, failure.traceback
    for secret in secrets:
        message = message.replace(secret, "(secret)")
        traceback = traceback.replace(secret, "(secret)")
    return replace(failure, message=message, traceback=traceback)


def _secrets_of(extra_data: Mapping[str, Any]) -> tuple[str, ...]:
    """What nodes of a prompt may need of its client, such as a token of a paid service."""
    return tuple(
        value
        for name, value in extra_data.items()
        if isinstance(value, str) and value and any(word in name.lower() for word in _WORDS)
    )
