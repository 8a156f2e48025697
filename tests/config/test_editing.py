"""Changes of fleet.yaml: nothing lost, nothing torn, and nothing wrong saved."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet import config
from comfyfleet.config import STAGGER, editing, load
from comfyfleet.errors import ComfyFleetError, InputError

COMMENTED = """\
# the fleet of the attic
workers:
  # it is loud
  - name: studio   # under the desk
    url: "http://10.0.0.5:8188"

settings:
  share: true      # always
  # by hand, for now
  workers: [cuda:0, cuda:1]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "comfyfleet" / "fleet.yaml"


@pytest.fixture
def commented(path: Path) -> Path:
    path.parent.mkdir()
    path.write_text(COMMENTED)
    return path


def names(path: Path) -> list[str]:
    return [worker.name for worker in load(path, {}).workers]


def test_the_first_change_makes_the_file(path: Path) -> None:
    config.set_setting(path, "share", True)
    config.add_worker(path, {"name": "a", "url": "http://x/", "ca": None, "enabled": True})
    assert path.read_text() == (
        "settings:\n  share: true\nworkers:\n  - name: a\n    url: http://x\n"
    )


@pytest.mark.parametrize(
    ("key", "given", "text"),
    [
        ("share", "true", "share: true"),
        ("share", False, "share: false"),
        ("stagger", "20", "stagger: 20.0"),
        ("stagger", 3, "stagger: 3"),
        ("workers", "cuda:1,cpu", "workers: cuda:1,cpu"),
        ("workers", ["cuda:1", "cpu"], "workers:\n    - cuda:1\n    - cpu"),
        ("workers", 2, "workers: 2"),
        ("workers", "2", "workers: '2'"),
    ],
)
def test_a_setting_is_saved_as_what_it_is(key: str, given: Any, text: str, path: Path) -> None:
    config.set_setting(path, key, given)
    assert path.read_text() == f"settings:\n  {text}\n"


def test_comments_and_order_stay(commented: Path) -> None:
    config.set_setting(commented, "share", False)
    config.set_setting(commented, "journal", False)
    config.add_worker(commented, {"name": "attic", "url": "http://y", "token_env": "ATTIC"})
    lines = commented.read_text().splitlines()
    for line in COMMENTED.splitlines():
        assert line.replace("share: true ", "share: false") in lines
    assert lines.index("settings:") > lines.index("workers:")
    assert lines[-1] == "  journal: false"


@pytest.mark.parametrize("text", ["# mine", "# mine\n\n# yours\n", "---\n# mine\n", "# mine\n{}\n"])
def test_comments_of_a_file_without_keys_stay(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_text(text)
    config.set_setting(path, "share", True)
    assert "# mine\n" in path.read_text() and load(path, {}).value(config.SHARE)
    config.unset_setting(path, "share")
    assert "# mine\n" in path.read_text() and not load(path, {}).value(config.SHARE)


def test_what_was_added_can_be_removed(commented: Path) -> None:
    config.add_worker(commented, {"name": "attic", "url": "http://y"})
    config.remove_worker(commented, "studio")
    assert names(commented) == ["attic"]
    config.remove_worker(commented, "attic")
    config.unset_setting(commented, "share")
    config.unset_setting(commented, "workers")
    assert load(commented, {}).document == config.Config().document


def test_no_change_leaves_the_file_alone(commented: Path) -> None:
    before = commented.stat()
    config.unset_setting(commented, "stagger")
    config.edit(commented, lambda data: None)
    assert commented.stat().st_ino == before.st_ino
    assert commented.read_text() == COMMENTED


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an unknown setting": (
        lambda path: config.set_setting(path, "sahre", "1"),
        "no setting is called 'sahre'; choose one of workers, share",
    ),
    "an unknown setting, unset": (lambda path: config.unset_setting(path, "x"), "called 'x'"),
    "a wrong text": (
        lambda path: config.set_setting(path, "share", "maybe"),
        "share is 'maybe'; give true or false",
    ),
    "a wrong value": (
        lambda path: config.set_setting(path, "stagger", True),
        "settings.stagger is true; give seconds, 0 to 86400",
    ),
    "a name twice": (
        lambda path: config.add_worker(path, {"name": "studio", "url": "http://y"}),
        "the name 'studio' stands twice",
    ),
    "a wrong worker": (
        lambda path: config.add_worker(path, {"name": "all", "url": "y"}),
        "name 'all' is kept for",
    ),
    "a token": (
        lambda path: config.add_worker(path, {"name": "a", "url": "http://y", "token": "hunter2"}),
        "token is not allowed: secrets do not belong into this file",
    ),
    "two tokens": (
        lambda path: config.add_worker(
            path, {"name": "a", "url": "http://y", "token_env": "A", "token_file": "b"}
        ),
        "the worker has token_env and token_file",
    ),
    "no such worker": (
        lambda path: config.remove_worker(path, "attic"),
        "has no worker 'attic'; it has studio",
    ),
    "a wrong result": (
        lambda path: config.edit(path, lambda data: data.update(workers=7)),
        "workers is 7; give a list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_change_is_refused_and_nothing_saved(case: str, commented: Path) -> None:
    change, said = WRONG[case]
    with pytest.raises(InputError) as caught:
        change(commented)
    assert said in str(caught.value) and "hunter2" not in str(caught.value)
    assert commented.read_text() == COMMENTED


def test_a_file_that_is_wrong_is_not_written(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("settings:\n  share: maybe\n  sahre: true\n")
    with pytest.raises(InputError, match=r"line 3: settings\.sahre"):
        config.set_setting(path, "share", True)
    assert "maybe" in path.read_text()


def test_a_wrong_value_can_be_set_right(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("settings:\n  share: maybe\n")
    config.set_setting(path, "share", True)
    assert load(path, {}).value(config.SHARE) is True


def test_a_new_file_is_its_owners_alone_and_a_mode_stays(path: Path) -> None:
    config.set_setting(path, "share", True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    config.set_setting(path, "share", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(commented: Path, tmp_path: Path) -> None:
    link = tmp_path / "fleet.yaml"
    link.symlink_to(commented)
    config.set_setting(link, "share", False)
    assert link.is_symlink() and not load(commented, {}).value(config.SHARE)


def test_what_cannot_be_written_is_said_and_nothing_left(commented: Path) -> None:
    """A full disk, as the limit on a file's size is one to whom writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(ComfyFleetError, match="cannot be written: File too large"):
            config.set_setting(commented, "share", False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert commented.read_text() == COMMENTED
    assert {each.name for each in commented.parent.iterdir()} <= {"fleet.yaml", "fleet.yaml.lock"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("")
    with pytest.raises(ComfyFleetError, match="cannot be written: "):
        config.set_setting(tmp_path / "user" / "fleet.yaml", "share", True)


def test_a_writer_that_hangs_is_named(commented: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "_LOCK_TIMEOUT_S", 0.01)
    with (
        FileLock(f"{commented}.lock"),
        pytest.raises(ComfyFleetError, match="another process has been writing"),
    ):
        config.set_setting(commented, "share", False)


_HANGS = """
import sys
from pathlib import Path
from comfyfleet import config
def change(data):
    data["settings"] = {"share": False}
    print("writing", flush=True)
    sys.stdin.read()
config.edit(Path(sys.argv[1]), change)
"""


def test_a_writer_that_is_killed_holds_up_nobody(commented: Path) -> None:
    command = [sys.executable, "-c", _HANGS, str(commented)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        writer.kill()
    assert commented.read_text() == COMMENTED
    config.set_setting(commented, "stagger", 5)
    assert load(commented, {}).value(STAGGER) == 5


#: What one of several writers does: add a worker, remove its last one, or set a setting.
STEPS = st.lists(st.sampled_from(["add", "remove", "set"]), max_size=8)


def do_steps(path: Path, writer: str, steps: list[str]) -> list[str]:
    """Done in a process of its own; the names of its workers that are left."""
    left: list[str] = []
    for number, step in enumerate(steps):
        if step == "add":
            left.append(f"{writer}-{number}")
            config.add_worker(path, {"name": left[-1], "url": f"http://{writer}:{number + 1}"})
        elif step == "remove" and left:
            config.remove_worker(path, left.pop())
        else:
            config.set_setting(path, "stagger", float(number))
    return left


@pytest.fixture(scope="module")
def writers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        yield pool


@given(plans=st.lists(STEPS, min_size=2, max_size=4))
@settings(max_examples=10, deadline=None)
def test_many_writers_lose_nothing_and_readers_see_whole_files(
    plans: list[list[str]], writers: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / "fleet.yaml"
    path.write_text(COMMENTED)
    done = threading.Event()
    seen: list[Exception | list[str]] = []
    reader = threading.Thread(target=_read_until, args=(path, done, seen))
    reader.start()
    futures = [
        writers.submit(do_steps, path, f"w{number}", steps) for number, steps in enumerate(plans)
    ]
    try:
        left = [name for future in futures for name in future.result(timeout=60)]
    finally:
        done.set()
        reader.join()
    assert sorted(names(path)) == sorted(["studio", *left])
    assert not [each for each in seen if isinstance(each, Exception)]
    assert "# the fleet of the attic" in path.read_text()
    assert {each.name for each in path.parent.iterdir()} <= {"fleet.yaml", "fleet.yaml.lock"}


def _read_until(path: Path, done: threading.Event, seen: list[Exception | list[str]]) -> None:
    while not done.is_set():
        try:
            seen.append(names(path))
            assert "studio" in seen[-1]
        except Exception as error:
            seen.append(error)


def test_threads_of_one_process_wait_too(path: Path) -> None:
    def work(writer: str) -> None:
        do_steps(path, writer, ["add"] * 5)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(path)) == 20
