"""Asks a Ray head something with the token of this process's environment.

Run as a script, by path, as Ray reads its settings once per process. It prints one word, or what
went wrong.
"""

from __future__ import annotations

import sys
from typing import Any

REFUSED = "refused"
OPEN = "open"


def main() -> None:
    from ray import _raylet, exceptions

    client: Any = _raylet
    try:
        client.GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
        answer = OPEN
    except exceptions.AuthenticationError:
        answer = REFUSED
    except Exception as error:
        answer = f"{type(error).__name__}: {error}".replace("\n", " ")
    sys.stdout.write(f"{answer}\n")


if __name__ == "__main__":
    main()
