"""What a master says of its workers, in each place where its owner may look."""

from __future__ import annotations

import json
import re

from comfyfleet.api import BASE
from tests.support import Master, run_command, wait_until


def assert_said(master: Master, pattern: str) -> None:
    """By the status, the command that prints it, and the log; spaces do not count."""
    wanted = one_line(pattern.replace("\\ ", " "))
    wait_until(lambda: re.search(wanted, status(master)), f"word of {pattern}", 60)
    # The status has a worker's last error, or its note, before the log has it.
    wait_until(lambda: re.search(wanted, one_line(master.log.read_text())), f"log of {pattern}", 60)
    shown = run_command("top", "--once", "--url", master.url)
    assert shown.returncode == 0, shown.stderr
    assert re.search(wanted, one_line(shown.stdout)), shown.stdout


def status(master: Master) -> str:
    return one_line(json.dumps(master.get(f"{BASE}/status"), ensure_ascii=False))


def one_line(text: str) -> str:
    """A terminal breaks lines in the middle of words."""
    return "".join(text.replace('\\"', '"').split())
