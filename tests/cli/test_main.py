"""The command's frame: its help, and which error ends it with which code."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from comfyfleet import cli, errors
from tests.support import run_command

CODES = [
    (errors.InputError("no"), 2),
    (errors.WorkflowError([errors.Problem(message="no")]), 2),
    (errors.FleetError("no"), 3),
    (errors.WorkerStartError("no"), 3),
    (errors.RunError("no"), 1),
    (errors.RunFailed("no"), 1),
    (errors.RunCancelled("no"), 1),
    (errors.ComfyFleetError("no"), 1),
]


def names(value: object) -> str:
    return type(value).__name__


def raising(error: BaseException | None) -> Callable[[], int]:
    """Stands for the command line: it raises, or ends well."""

    def app() -> int:
        if error is not None:
            raise error
        return 0

    return app


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[..., object]]:
    """What the command would do on signals, without doing it to the tests' process."""
    found: dict[int, Callable[..., object]] = {}
    monkeypatch.setattr(signal, "signal", found.__setitem__)
    return found


@pytest.fixture
def plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help without colours and wide enough for all names, wherever the tests run."""
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize(("error", "code"), CODES, ids=names)
def test_each_error_has_its_exit_code(error: errors.ComfyFleetError, code: int) -> None:
    assert cli.exit_code(error) == code


@pytest.mark.parametrize(("error", "code"), CODES, ids=names)
def test_an_error_is_one_message_and_a_code(
    error: errors.ComfyFleetError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    handlers: dict[int, Callable[..., object]],
) -> None:
    monkeypatch.setattr("comfyfleet.cli.app.app", raising(error))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr() == ("", "comfyfleet: no\n")


def test_success_is_zero(
    monkeypatch: pytest.MonkeyPatch, handlers: dict[int, Callable[..., object]]
) -> None:
    monkeypatch.setattr("comfyfleet.cli.app.app", raising(None))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code in (0, None)


def test_errors_that_are_not_ours_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, handlers: dict[int, Callable[..., object]]
) -> None:
    monkeypatch.setattr("comfyfleet.cli.app.app", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130(
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    handlers: dict[int, Callable[..., object]],
) -> None:
    monkeypatch.setattr("comfyfleet.cli.app.app", lambda: handlers[number](number, None))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "comfyfleet: interrupted\n"


HELP = {
    (): {
        *("--version", "--help", "run", "status", "top", "logs", "share", "worker"),
        *("config", "doctor", "bench"),
    },
    ("run",): {
        *("WORKFLOW", "--count", "--seed", "--set", "NODE.INPUT=VALUE", "--workers"),
        *("--out", "--resume", "--comfyui", "--config", "--help"),
    },
    ("status",): {"--json"},
    ("top",): {"--once", "--interval", "--url"},
    ("logs",): {"WORKER", "--lines", "--follow", "--url"},
    ("share",): {"--master", "--no-master", "--url"},
    ("worker",): {"WORKER", "ACTION", "--url"},
    ("config",): {
        *("show", "set", "unset", "add-worker", "remove-worker", "import", "path"),
    },
    ("config", "set"): {"KEY", "VALUE", "--config", "--comfyui"},
    ("config", "add-worker"): {"NAME", "URL", "--token-env", "--token-file", "--ca", "--config"},
    ("doctor",): {"--workers", "--comfyui", "--config", "--json"},
    ("bench",): {"NAME", "--json"},
}


@pytest.mark.parametrize("command", HELP, ids=lambda command: " ".join(command) or "comfyfleet")
def test_help_lists_everything(command: tuple[str, ...], plain_text: None) -> None:
    answer = run_command(*command, "--help")
    assert answer.returncode == 0, answer.stderr
    words = set(re.findall(r"[\w.=-]+", answer.stdout))
    found = {word.lower() for word in words}
    assert {word.lower() for word in HELP[command]} <= found


@pytest.mark.parametrize("command", [(), ("run",)], ids=["comfyfleet", "run"])
def test_help_says_the_exit_codes(command: tuple[str, ...], plain_text: None) -> None:
    text = " ".join(run_command(*command, "--help").stdout.split())
    assert "0 done; 1 a run failed; 2 wrong input; 3 the fleet could not start" in text
    assert "130 interrupted" in text


def test_no_arguments_show_the_help(plain_text: None) -> None:
    answer = run_command()
    assert answer.returncode == 2
    assert "Usage" in answer.stdout + answer.stderr
