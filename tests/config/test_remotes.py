"""Workers on the network with their tokens, which are never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from comfyfleet.config import Remote, load
from comfyfleet.errors import InputError

STUDIO = "workers:\n- name: studio\n  url: https://x:8188\n"


def remote_of(tmp_path: Path, rest: str, environ: dict[str, str] | None = None) -> Remote:
    path = tmp_path / "fleet.yaml"
    path.write_text(STUDIO + rest)
    (found,) = load(path, environ or {}).remotes()
    return found


def token_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "studio.token"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_without_a_token(tmp_path: Path) -> None:
    assert remote_of(tmp_path, "") == Remote("studio", "https://x:8188", True, "", None)


def test_a_token_of_the_environment(tmp_path: Path) -> None:
    assert remote_of(tmp_path, "  token_env: T\n", {"T": " hunter2\n"}).token == "hunter2"


@pytest.mark.parametrize("whole", [True, False])
def test_a_token_of_a_file_beside_fleet_yaml(whole: bool, tmp_path: Path) -> None:
    path = token_file(tmp_path, b"hunter2\n")
    name = path if whole else path.name
    assert remote_of(tmp_path, f"  token_file: {name}\n").token == "hunter2"


def test_certificates_beside_fleet_yaml(tmp_path: Path) -> None:
    (tmp_path / "studio.pem").write_text("")
    assert remote_of(tmp_path, "  ca: studio.pem\n").ca == tmp_path / "studio.pem"


def test_a_worker_that_is_not_enabled_needs_no_token(tmp_path: Path) -> None:
    rest = "  enabled: false\n  token_file: none\n  ca: none.pem\n"
    assert remote_of(tmp_path, rest).token == ""


def test_the_token_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(STUDIO + "  token_env: T\n")
    found = load(path, {"T": "hunter2"})
    assert found.remotes()[0].token == "hunter2"
    for text in (repr(found.remotes()), repr(found), repr(found.shown())):
        assert "hunter2" not in text


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602, 0o620, 0o610])
def test_a_token_file_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    token_file(tmp_path, b"hunter2", mode)
    with pytest.raises(InputError, match=r"worker studio: token_file .*chmod 600"):
        remote_of(tmp_path, "  token_file: studio.token\n")


@pytest.mark.parametrize("data", [b"", b" \n", b"two words", b"hunter2\nb", b"\xff", b"x" * 5000])
def test_what_is_no_token_is_refused_and_not_shown(data: bytes, tmp_path: Path) -> None:
    token_file(tmp_path, data)
    with pytest.raises(InputError, match="worker studio: token_file names") as caught:
        remote_of(tmp_path, "  token_file: studio.token\n")
    assert "hunter2" not in str(caught.value) and "words" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("  token_env: T\n", "worker studio: token_env names what is empty or not set"),
        ("  token_file: hunter2\n", "worker studio: token_file cannot be read: No such file"),
        ("  token_file: .\n", "worker studio: token_file cannot be read"),
        ("  ca: none.pem\n", "worker studio: ca names no file"),
    ],
)
def test_what_is_not_there_is_named(rest: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        remote_of(tmp_path, rest)
    assert str(caught.value).startswith(said) and "hunter2" not in str(caught.value)
