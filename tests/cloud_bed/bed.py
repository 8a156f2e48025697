"""A fleet.yaml with a launcher whose provider is a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROVIDER = Path(__file__).with_name("provider.py")
TOKEN = "the-token-of-rented-machines-0123456789"


def launcher(cloud: Path, **changes: Any) -> dict[str, Any]:
    """An entry below ``launchers:``; ``cloud``: the provider's folder."""
    command = [sys.executable, str(PROVIDER), str(cloud)]
    return {
        "name": "rented",
        "start": [*command, "create", "{name}"],
        "stop": [*command, "delete", "{id}"],
        "list": [*command, "list"],
        "url": "http://127.0.0.1:{net.ports.0}",
        "token_env": "RENTED_TOKEN",
        "max": 2,
        **changes,
    }


def written(path: Path, *launchers: dict[str, Any], **rest: Any) -> Path:
    """A fleet.yaml; JSON is YAML."""
    path.write_text(json.dumps({"launchers": launchers, **rest}))
    return path


def machines(cloud: Path) -> list[dict[str, Any]]:
    """What costs money."""
    return [json.loads(path.read_text()) for path in sorted(cloud.glob("*.json"))]
