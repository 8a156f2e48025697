"""The file of tokens: who holds one, who no longer does, and who may read it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from comfyfleet.errors import AccessError, FleetError, InputError
from comfyfleet.fleet.tokens import OWNER, Tokens, own_token, write_secret

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "user" / "tokens.json"


def test_the_first_start_makes_a_token_that_only_its_user_can_read(path: Path) -> None:
    Tokens(path).prepare()
    assert path.stat().st_mode & 0o777 == 0o600
    token = own_token(path)
    assert len(token) >= 43
    assert Tokens(path).holder(token) == OWNER, "the second start keeps it"
    assert [each.name for each in path.parent.iterdir() if each.suffix == ".new"] == []


@pytest.mark.parametrize("token", ["", "x", "\udc80", "\u00e9" * 9, "a" * 8000])
def test_a_wrong_token_is_nobodys(path: Path, token: str) -> None:
    assert Tokens(path).holder(token) is None


def test_a_token_for_somebody_else_until_it_is_revoked(path: Path) -> None:
    here, elsewhere = Tokens(path), Tokens(path)
    token = here.issue("studio")
    assert elsewhere.holder(token) == "studio"
    assert [each.name for each in elsewhere.issued()] == ["studio"]
    assert token not in path.read_text()
    assert elsewhere.revoke("studio") and not elsewhere.revoke("studio")
    assert here.holder(token) is None
    assert here.holder(own_token(path)) == OWNER


@pytest.mark.parametrize("name", ["studio", "owner", "page"])
def test_a_name_is_given_once(path: Path, name: str) -> None:
    tokens = Tokens(path)
    tokens.issue("studio")
    with pytest.raises(AccessError, match="holds a token already") as caught:
        tokens.issue(name)
    assert caught.value.status == 409


def test_a_name_is_plain(path: Path) -> None:
    with pytest.raises(InputError, match="is no name"):
        Tokens(path).issue("../x")


def test_there_is_an_end_to_tokens(path: Path) -> None:
    tokens = Tokens(path)
    tokens.issue("n0")
    data = json.loads(path.read_text())
    data["issued"] = [{**data["issued"][0], "name": f"n{i}"} for i in range(100)]
    write_secret(path, json.dumps(data))
    with pytest.raises(AccessError, match="100 tokens are out"):
        tokens.issue("one-more")


def test_two_starts_at_once_make_one_token(path: Path) -> None:
    stores, start, seen = [Tokens(path) for _ in range(8)], threading.Barrier(8), []

    def begin(tokens: Tokens) -> None:
        start.wait()
        tokens.prepare()
        seen.append(own_token(path))

    threads = [threading.Thread(target=begin, args=(tokens,)) for tokens in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1


def test_no_token_is_lost_between_two_who_write(path: Path) -> None:
    names = [f"n{i}" for i in range(8)]
    threads = [threading.Thread(target=Tokens(path).issue, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.name for each in Tokens(path).issued()) == names


def test_a_deleted_file_means_new_tokens(path: Path) -> None:
    tokens = Tokens(path)
    theirs, ours = tokens.issue("studio"), own_token(path)
    path.unlink()
    assert tokens.holder(ours) is None and tokens.holder(theirs) is None
    assert tokens.holder(own_token(path)) == OWNER


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620])
def test_a_file_that_others_can_read_is_refused(path: Path, mode: int) -> None:
    tokens = Tokens(path)
    tokens.prepare()
    path.chmod(mode)
    for ask in (lambda: tokens.holder("x"), tokens.issued, lambda: own_token(path)):
        with pytest.raises(FleetError, match=rf"mode {mode:04o}.*chmod 600") as caught:
            ask()
        assert "own" not in str(caught.value).partition(str(path))[2]
    path.chmod(0o600)
    assert tokens.holder(own_token(path)) == OWNER


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"own": "secret-of-mine'])
def test_a_damaged_file_is_said_without_its_secrets(path: Path, text: str) -> None:
    path.parent.mkdir()
    write_secret(path, text)
    with pytest.raises(FleetError, match="is damaged, or of a newer ComfyFleet") as caught:
        Tokens(path).holder("x")
    assert "secret-of-mine" not in str(caught.value)


def test_a_newer_file_is_left_alone(path: Path) -> None:
    Tokens(path).prepare()
    data = {**json.loads(path.read_text()), "version": 2}
    write_secret(path, json.dumps(data))
    with pytest.raises(FleetError, match="version 2"):
        Tokens(path).issue("x")
    assert json.loads(path.read_text()) == data


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match=r"the tokens cannot be kept in .*Make its folder"):
        Tokens(tmp_path / "file" / "tokens.json").prepare()


def test_nothing_shows_a_token(path: Path) -> None:
    tokens = Tokens(path)
    tokens.prepare()
    assert own_token(path) not in repr(vars(tokens))


def test_a_token_that_was_made_elsewhere(path: Path) -> None:
    tokens, first, second = Tokens(path), "a" * 32, "b" * 32
    for token in (first, second):  # the second stands in the place of the first
        tokens.accept("served", token)
    assert tokens.holder(first) is None and tokens.holder(second) == "served"
    assert [each.name for each in tokens.issued()] == ["served"]
    assert second not in path.read_text()
    with pytest.raises(InputError, match="too short"):
        tokens.accept("served", "guess")
