"""Digests of files: each read once, and again when it has changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from comfyfleet.client.digests import Digests


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_and_known_after_a_restart(tmp_path: Path) -> None:
    kept, file = tmp_path / "owner" / "digests.json", tmp_path / "a model"
    file.write_bytes(b"weights")
    assert Digests(kept).known(file) == ""
    assert Digests(kept).of(file) == sha256(b"weights")
    again = Digests(kept)
    assert again.known(file) == again.of(file) == sha256(b"weights")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    digests, file = Digests(tmp_path / "digests.json"), tmp_path / "model"
    file.write_bytes(b"one")
    digests.of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digests.known(file) == ""
    assert digests.of(file) == sha256(b"two")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"x": ["a", "b", "c"]}'])
def test_a_damaged_file_costs_time_only(tmp_path: Path, text: str) -> None:
    kept, file = tmp_path / "digests.json", tmp_path / "model"
    kept.write_text(text)
    file.write_bytes(b"weights")
    assert Digests(kept).of(file) == sha256(b"weights")
    assert list(json.loads(kept.read_text())) == [str(file)]
