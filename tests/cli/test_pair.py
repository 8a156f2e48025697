"""Which token the command sends, and where to; how it gets one, and keeps it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from comfyfleet.cli.master import MasterClient, own_comfyui
from comfyfleet.cli.pair import get_token
from comfyfleet.errors import FleetError, InputError
from comfyfleet.fleet import registry
from comfyfleet.fleet.registry import read_masters, write_master
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens, own_token, write_secret
from tests.support import run_command


class Recorder(BaseHTTPRequestHandler):
    """Keeps what was asked; leads elsewhere where the path says so."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"name": body["name"], "token": f"for-{body['code']}"})

    def _answer(self, data: dict[str, str]) -> None:
        assert isinstance(self.server, There)
        self.server.seen.append((self.path, self.headers.get("Authorization", "")))
        away = self.path.endswith("/away")
        self.send_response(307 if away else 200)
        if away:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *args: object) -> None:
        """Quiet."""


class There(HTTPServer):
    """Another ComfyUI, as far as this is about tokens."""

    seen: list[tuple[str, str]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[There]:
    (tmp_path / "sessions").mkdir()
    monkeypatch.setattr(registry, "sessions_root", lambda: tmp_path / "sessions")
    monkeypatch.delenv("COMFYFLEET_TOKEN", raising=False)
    with There(("127.0.0.1", 0), Recorder) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sent(there: There, **how: Path | None) -> str:
    MasterClient(there.url, **how).get("/x")
    return there.seen[-1][1]


def test_the_owners_token_goes_to_the_comfyui_of_this_machine(there: There, tmp_path: Path) -> None:
    assert sent(there) == "", "nobody's token is known"
    Tokens(tmp_path / TOKENS_FILE).prepare()
    write_master(there.url.replace("127.0.0.1", "localhost"), tmp_path)
    assert sent(there) == f"Bearer {own_token(tmp_path / TOKENS_FILE)}"
    MasterClient(there.url).get("/away")
    assert there.seen[-1] == ("/elsewhere", ""), "wherever its answer points"


def test_a_comfyui_of_this_machine_is_known_by_each_of_its_names(
    there: There, tmp_path: Path
) -> None:
    """Else who joins by another name would have no door before it."""
    write_master(there.url, tmp_path)
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert own_comfyui(f"http://{host}:{there.server_port}")[1] == tmp_path
    assert own_comfyui("http://127.0.0.1:1")[1] is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:{}", "http://x.test:{}"])
def test_it_goes_to_no_other_place(there: There, tmp_path: Path, url: str) -> None:
    Tokens(tmp_path / TOKENS_FILE).prepare()
    write_master(url.format(there.server_port), tmp_path)
    assert sent(there) == ""


def test_a_token_can_be_given(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYFLEET_TOKEN", "from-env")
    assert sent(there) == "Bearer from-env"
    write_secret(tmp_path / "t", "from-file\n")
    assert sent(there, token_file=tmp_path / "t") == "Bearer from-file"


@pytest.mark.parametrize("text", ["", "two\nlines", "\u00e9"])
def test_a_file_without_a_token_is_said(there: There, tmp_path: Path, text: str) -> None:
    write_secret(tmp_path / "t", text)
    with pytest.raises(InputError, match="holds no token: one line is expected"):
        MasterClient(there.url, tmp_path / "t")
    with pytest.raises(InputError, match="cannot be read"):
        MasterClient(there.url, tmp_path / "none")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_file_that_others_can_read_is_refused(there: There, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x")
    (tmp_path / "t").chmod(0o644)
    with pytest.raises(FleetError, match="other users can read it"):
        MasterClient(there.url, tmp_path / "t")


# Pairing.


def test_a_code_becomes_a_file(
    there: There, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_master("http://127.0.0.1:1", tmp_path / "user")
    get_token(there.url, "abcd-efgh", name="me", out=None)
    file = tmp_path / "user" / f"127.0.0.1-{there.server_port}.token"
    assert file.read_text() == "for-ABCDEFGH\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"token_file: {file}" in capsys.readouterr().out
    assert there.seen == [("/comfyfleet/v1/pair", "")]
    get_token(there.url, "ABCDEFGH", name="me", out=tmp_path / "own")
    assert (tmp_path / "own").read_text() == "for-ABCDEFGH\n"


def test_a_token_that_cannot_be_kept_is_said(there: There, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        FleetError, match=r"tokens revoke me\), and pair again with --out"
    ) as caught:
        get_token(there.url, "ABCDEFGH", name="me", out=tmp_path / "file" / "t")
    assert "for-ABCDEFGH" not in str(caught.value)


WRONG = {
    "no code": (("pair", "http://127.0.0.1:1"), "give the code too"),
    "no address": (("pair", "here", "ABCDEFGH"), "give an address such as"),
    "no port": (("pair", "http://x:y", "ABCDEFGH"), "Port could not be cast"),
    "no action": (("tokens", "show"), "give list, or revoke and a name"),
    "nobody": (("tokens", "revoke"), "give list, or revoke and a name"),
    "a name too much": (("tokens", "list", "me"), "give list, or revoke and a name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told(case: str) -> None:
    args, said = WRONG[case]
    answer = run_command(*args)
    assert (answer.returncode, said in " ".join(answer.stderr.split())) == (2, True), answer.stderr


# Who runs here.


def test_a_comfyui_is_found_while_it_lives(there: There, tmp_path: Path) -> None:
    write_master("http://127.0.0.1:1", tmp_path)
    (found,) = read_masters()
    assert (found.pid, found.url, found.folder) == (
        os.getpid(),
        "http://127.0.0.1:1",
        str(tmp_path),
    )
    record = next((tmp_path / "sessions").glob("*/*.json"))
    assert record.parent.stat().st_mode & 0o777 == 0o700
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": 1.0}))
    assert read_masters() == [] and not record.exists(), "another process has its number now"


def test_a_folder_of_somebody_else_is_not_believed(there: There, tmp_path: Path) -> None:
    write_master("http://127.0.0.1:1", tmp_path)
    folder = next((tmp_path / "sessions").iterdir())
    folder.chmod(0o777)
    assert read_masters() == []
    with pytest.raises(FleetError, match="belongs to somebody else"):
        write_master("http://127.0.0.1:1", tmp_path)


def test_a_door_that_is_made_while_somebody_looks_stays(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a ComfyUI that was not there yet when the records were read."""
    write_master("http://127.0.0.1:1", tmp_path)
    door = next((tmp_path / "sessions").iterdir()) / "1-box.sock"
    read = registry._read_master

    def read_before(path: Path) -> object:
        found = read(path)
        door.touch()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_read_master", read_before)
        read_masters()
    assert door.exists()
    read_masters()
    assert not door.exists(), "it belongs to nobody"
