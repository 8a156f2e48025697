from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet.errors import InputError, JournalError, JournalInUse
from comfyfleet.fleet.journal import Journal, QueuedPrompt

PROMPT = {"7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "cfg": 7.5, "seed": 1}}}
#: What both programs begin with.
PREAMBLE = """
import itertools, resource, sys
from pathlib import Path
from comfyfleet.errors import JournalError
from comfyfleet.fleet.journal import Journal, QueuedPrompt

def queued(number):
    return QueuedPrompt(
        number=number, prompt_id=str(number), prompt={}, extra_data={"x": "x" * 500}, outputs=()
    )
"""
#: A program that keeps prompts until it is killed, and says each that is kept.
WRITER = """
journal = Journal(Path(sys.argv[1]))
print("ready", flush=True)
for number in itertools.count():
    journal.put(queued(number))
    journal.start(str(number))
    journal.place(str(number), "7/0", f"output/{number}.png")
    print(number, flush=True)
"""
#: A program that may write no file beyond some bytes: to it, the disk is full.
CROWDED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    journal = Journal(Path(sys.argv[1]))
    for number in range(1000):
        journal.put(queued(number))
        print(number)
except JournalError as error:
    print(error)
"""

#: A newer version, whose last changes are still in the -wal when it is killed.
UPGRADE = """
import os, signal, sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("UPDATE prompts SET number = 5")
db.execute("PRAGMA user_version = 2")
os.kill(os.getpid(), signal.SIGKILL)
"""


def entry(prompt_id: str = "a", number: float = 0, **others: Any) -> QueuedPrompt:
    known: dict[str, Any] = {"prompt": PROMPT, "extra_data": {"client_id": "c"}, "outputs": ("7",)}
    return QueuedPrompt(number=number, prompt_id=prompt_id, **{**known, **others})


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as journal:
        yield journal


def unfinished(path: Path) -> list[QueuedPrompt]:
    with opened(path) as journal:
        return journal.unfinished()


def ids(journal: Journal) -> list[str]:
    return [found.prompt_id for found in journal.unfinished()]


def change(path: Path, *statements: str) -> None:
    """What somebody else does to the file."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def kept(path: Path) -> list[Path]:
    """What was kept aside, the database first."""
    return sorted(path.parent.glob(f"{path.name}.kept-*"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "user" / "queue.sqlite3"


@pytest.fixture
def program(path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one of the programs above."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREAMBLE + code, str(path), *args]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


# What is kept


def test_a_prompt_comes_back_as_it_was(path: Path) -> None:
    whole = entry(started=True, placed={"7/0": "output/a b/ü.png", "7/1": "temp/x.png"})
    with opened(path) as journal:
        assert journal.note == ""
        journal.put(whole)
        assert journal.unfinished() == [whole]
    assert unfinished(path) == [whole]


def test_the_order_is_comfyuis_with_what_had_started_first(path: Path) -> None:
    numbers = {"a": 3, "b": -1, "c": 3, "d": 2.5, "e": 9, "f": -math.inf}
    with opened(path) as journal:
        for prompt_id, number in numbers.items():
            journal.put(entry(prompt_id, number))
        journal.start("e")
        journal.start("c")
        assert ids(journal) == ["c", "e", "f", "b", "d", "a"]


def test_a_prompt_that_is_put_again_is_replaced_and_keeps_its_turn(path: Path) -> None:
    with opened(path) as journal:
        for prompt_id in "ab":
            journal.put(entry(prompt_id, started=True, placed={"7/0": "output/x.png"}))
        journal.put(entry("a", extra_data={}, started=True))
        first, _ = journal.unfinished()
        assert first == entry("a", extra_data={}, started=True), "what it had placed is forgotten"


def test_what_is_unknown_changes_nothing(path: Path) -> None:
    with opened(path) as journal:
        journal.put(entry("a"))
        journal.start("b")
        journal.place("b", "7/0", "output/x.png")
        journal.end("b")
        journal.put(entry("b"))
        assert journal.unfinished() == [entry("a"), entry("b")]


def test_what_ends_leaves_nothing_behind(path: Path) -> None:
    with opened(path) as journal:
        for prompt_id in "abcd":
            journal.put(entry(prompt_id, placed={"7/0": "output/x.png"}))
        journal.end("a")
        journal.end_all_but({"c", "unknown"})
        assert ids(journal) == ["c"]
        journal.end_all_but([])
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(
            "SELECT (SELECT count(*) FROM prompts), count(*) FROM placed"
        ).fetchall() == [(0, 0)]


def test_a_large_queue_can_be_forgotten_at_once(path: Path) -> None:
    with opened(path) as journal:
        journal.put(entry("a"))
        journal.end_all_but([str(number) for number in range(100_000)])
        assert ids(journal) == []


@pytest.mark.parametrize("text", ["", "\0", "\udc80", "é\n\"'%", "*" * 10_000])
def test_any_name_and_any_text_is_kept(text: str, path: Path) -> None:
    odd = entry(text, prompt={text: {text: text}}, extra_data={text: [text]}, outputs=(text,))
    with opened(path) as journal:
        journal.put(odd)
        journal.place(text, text, text)
        journal.start(text)
    assert unfinished(path) == [replace(odd, started=True, placed={text: text})]


def test_numbers_that_only_python_calls_json_are_kept(path: Path) -> None:
    with opened(path) as journal:
        journal.put(entry(extra_data={"x": [math.inf, 2**70, 0.1]}))
    assert unfinished(path) == [entry(extra_data={"x": [math.inf, 2**70, 0.1]})]


def test_what_is_no_json_is_refused(path: Path) -> None:
    with opened(path) as journal:
        journal.put(entry("a"))
        with pytest.raises(InputError, match=r"prompt a cannot be kept, .* not JSON: .*set"):
            journal.put(entry("a", extra_data={"x": {1}}))
        with pytest.raises(InputError, match="prompt a: its number is NaN"):
            journal.put(entry("a", number=math.nan))
        assert journal.unfinished() == [entry("a")]


def test_many_threads_may_write(path: Path) -> None:
    def write(journal: Journal, name: str) -> None:
        for number in range(20):
            journal.put(entry(f"{name}{number}", number))
            journal.start(f"{name}{number}")
            journal.place(f"{name}{number}", "7/0", name)

    with opened(path) as journal:
        threads = [threading.Thread(target=write, args=(journal, name)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = journal.unfinished()
    assert len(found) == 80
    assert all(one.started and one.placed == {"7/0": one.prompt_id[0]} for one in found)


# Any calls equal a plain dict

_IDS = st.sampled_from("abc")
_TEXT = st.text(max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)
_ENTRIES = st.builds(
    QueuedPrompt,
    number=st.floats(allow_nan=False) | st.integers(-2, 2).map(float),
    prompt_id=_IDS,
    prompt=st.dictionaries(_TEXT, st.dictionaries(_TEXT, _JSON, max_size=2), max_size=2),
    extra_data=st.dictionaries(_TEXT, _JSON, max_size=2),
    outputs=st.lists(_TEXT, max_size=2).map(tuple),
    started=st.booleans(),
    placed=st.dictionaries(_TEXT, _TEXT, max_size=2),
)
_CALLS = st.one_of(
    st.tuples(st.just("put"), _ENTRIES),
    st.tuples(st.just("start"), _IDS),
    st.tuples(st.just("place"), _IDS, _TEXT, _TEXT),
    st.tuples(st.just("end"), _IDS),
    st.tuples(st.just("end_all_but"), st.sets(_IDS)),
    st.tuples(st.just("reopen")),
)


class Model:
    """What a journal is, without a file."""

    def __init__(self) -> None:
        self.entries: dict[str, QueuedPrompt] = {}

    def put(self, new: QueuedPrompt) -> None:
        self.entries[new.prompt_id] = new

    def start(self, prompt_id: str) -> None:
        if prompt_id in self.entries:
            self.put(replace(self.entries[prompt_id], started=True))

    def place(self, prompt_id: str, key: str, file: str) -> None:
        if old := self.entries.get(prompt_id):
            self.put(replace(old, placed={**old.placed, key: file}))

    def end(self, prompt_id: str) -> None:
        self.entries.pop(prompt_id, None)

    def end_all_but(self, prompt_ids: set[str]) -> None:
        self.entries = {name: one for name, one in self.entries.items() if name in prompt_ids}

    def unfinished(self) -> list[QueuedPrompt]:
        return sorted(self.entries.values(), key=lambda one: (not one.started, one.number))


@settings(deadline=None, max_examples=100)
@given(calls=st.lists(_CALLS, max_size=20))
def test_any_calls_with_reopening_in_between_equal_a_dict(calls: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue.sqlite3"
        journal, model = Journal(path), Model()
        try:
            for name, *args in calls:
                if name == "reopen":
                    journal.close()
                    journal = Journal(path)
                else:
                    getattr(journal, name)(*args)
                    getattr(model, name)(*args)
                assert journal.unfinished() == model.unfinished()
            assert journal.note == ""
        finally:
            journal.close()


# Killed, full, in use


def test_what_was_kept_outlives_a_process_that_is_killed(path: Path, program: Any) -> None:
    said = 0
    for round_ in (3, 40):
        writer = program(WRITER)
        assert writer.stdout.readline() == "ready\n", "the lock of a killed process is gone"
        for _ in range(round_):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = max(said, round_ - 1, *map(int, writer.communicate()[0].split()[-1:]))
    with opened(path) as journal:
        assert journal.note == ""
        found = {one.prompt_id: one for one in journal.unfinished()}
    for number in range(said + 1):
        assert found[str(number)].started
        assert found[str(number)].placed == {"7/0": f"output/{number}.png"}


def test_two_on_one_file_is_an_error_that_names_the_other(path: Path, program: Any) -> None:
    writer = program(WRITER)
    writer.stdout.readline()
    with pytest.raises(JournalInUse) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert f"(process {writer.pid})" in str(caught.value)
    assert "--user-directory" in str(caught.value)


def test_a_link_is_the_same_file(path: Path, tmp_path: Path) -> None:
    with opened(path):
        (tmp_path / "link").symlink_to(path.parent)
        with pytest.raises(JournalInUse, match=f"process {os.getpid()}"):
            Journal(tmp_path / "link" / path.name)


@pytest.mark.parametrize("text", [None, "", "me", "99999999"])
def test_the_other_is_not_named_if_it_is_not_known(text: str | None, path: Path) -> None:
    with opened(path):
        holder = path.with_name("queue.sqlite3.pid")
        holder.unlink() if text is None else holder.write_text(text)
        with pytest.raises(JournalInUse, match=r"of another ComfyUI\. Stop"):
            Journal(path)


def test_a_closed_journal_takes_nothing_from_the_next(path: Path) -> None:
    first = Journal(path)
    first.close()
    with opened(path) as second:
        first.close()
        with pytest.raises(JournalInUse):
            Journal(path)
        with pytest.raises(JournalError, match="closed database"):
            first.put(entry())
        second.put(entry())
        assert ids(second) == ["a"]


@pytest.mark.parametrize("room", [0, 5_000, 100_000])
def test_a_full_disk_is_a_clear_error_and_costs_nothing_that_was_kept(
    room: int, path: Path, program: Any
) -> None:
    *said, error = program(CROWDED, str(room)).communicate(timeout=60)[0].splitlines()
    assert error.startswith(f"the queue cannot be kept in {path}: ")
    assert "See that the disk has room" in error
    assert bool(said) == (room == 100_000)
    with opened(path) as journal:
        assert ids(journal) == said
        assert journal.note == ""
        journal.put(entry("again", number=1e9))
        assert ids(journal)[-1] == "again"


@pytest.mark.parametrize("place", ["/proc/comfyfleet/queue.sqlite3", "{}/file/queue.sqlite3", "{}"])
def test_a_place_that_cannot_be_written_is_a_clear_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mode = tmp_path.stat().st_mode
    path = Path(place.format(tmp_path))
    with pytest.raises(JournalError, match=f"the queue cannot be kept in {path}: .*can be written"):
        Journal(path)
    assert tmp_path.stat().st_mode == mode


def test_only_the_owner_may_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        with opened(path) as journal:
            journal.put(entry())
            assert [file.stat().st_mode & 0o777 for file in path.parent.glob("*.sqlite3*-*")] == [
                0o600,
                0o600,
            ]
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
    path.chmod(0o644)
    with opened(path):
        assert path.stat().st_mode & 0o777 == 0o600


# Files that cannot be used


def _garbage(path: Path) -> None:
    path.write_bytes(b"these are no prompts" * 400)


def _newer(path: Path) -> None:
    change(path, "PRAGMA user_version = 2")


def _foreign(path: Path) -> None:
    change(path, "DROP TABLE placed", "CREATE TABLE pictures (name)")


def _short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def _write_format(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(18)
        file.write(b"\3")


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "garbage": (_garbage, "it is no SQLite database"),
    "newer SQLite": (_write_format, "a format that this SQLite cannot write"),
    "newer": (_newer, "written by a newer ComfyFleet"),
    "foreign": (_foreign, "it is not a queue of ComfyFleet"),
    "short": (_short, "malformed"),
    "damaged": (_damaged, "*** in database main *** "),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_file_that_cannot_be_used_is_kept_and_a_fresh_one_begun(case: str, path: Path) -> None:
    damage, reason = UNUSABLE[case]
    with opened(path) as journal:
        journal.put(entry())
    damage(path)
    data = path.read_bytes()
    with opened(path) as journal:
        (aside,) = kept(path)
        assert aside.read_bytes() == data
        assert reason in journal.note
        assert str(path) in journal.note
        assert str(aside) in journal.note
        assert journal.unfinished() == []
        journal.put(entry("b"))
    with opened(path) as journal:
        assert (journal.note, ids(journal)) == ("", ["b"])


def test_a_kept_file_can_be_renamed_back_with_all_that_it_had(path: Path, program: Any) -> None:
    with opened(path) as journal:
        journal.put(entry())
    assert program(UPGRADE).wait() == -signal.SIGKILL
    with opened(path) as journal:
        assert "newer" in journal.note
        assert journal.unfinished() == []
    aside = kept(path)
    assert [file.name.partition("Z")[2] for file in aside] == ["", "-shm", "-wal"]
    for file in aside:
        file.rename(path.with_name(path.name + file.name.partition("Z")[2]))
    change(path, "PRAGMA user_version = 1")
    assert unfinished(path) == [entry("a", 5)]


def test_a_log_without_its_database_is_kept(path: Path, program: Any) -> None:
    writer = program(WRITER)
    for _ in range(3):
        writer.stdout.readline()
    writer.kill()
    writer.wait()
    wal = path.with_name("queue.sqlite3-wal")
    data = wal.read_bytes()
    path.unlink()
    with opened(path) as journal:
        assert "its -wal is not" in journal.note
    assert data in [file.read_bytes() for file in kept(path)]


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with opened(path) as journal:
        assert journal.note == ""
        journal.put(entry())
        assert ids(journal) == ["a"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal's file with some prompts."""
    path = tmp_path_factory.mktemp("sound") / "queue.sqlite3"
    with opened(path) as journal:
        for number in range(8):
            journal.put(entry(str(number), placed={"7/0": "output/x.png"}))
    return path


#: The file's header, which SQLite reads before all else, and anything.
_PLACES = st.integers(0, 100) | st.integers(0, 2**20)


@settings(deadline=None, max_examples=200)
@given(changes=st.dictionaries(_PLACES, st.integers(0, 255), min_size=1, max_size=8))
def test_no_damage_stops_the_queue_or_is_lost(sound: Path, changes: dict[int, int]) -> None:
    damaged = bytearray(sound.read_bytes())
    for place, byte in changes.items():
        damaged[place % len(damaged)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue.sqlite3"
        path.write_bytes(damaged)
        with opened(path) as journal:
            note = journal.note
            journal.put(entry("new", -1e308))
            assert "new" in ids(journal)
        if aside := kept(path):
            assert aside[0].read_bytes() == damaged
            assert str(aside[0]) in note


# Rows that cannot be read

UNREADABLE = {
    "no JSON": "prompt = '{'",
    "no text": "prompt = CAST(x'ff' AS TEXT)",
    "a list": "prompt = '[]'",
    "a node that is none": "prompt = '{\"1\": 3}'",
    "a number of words": "number = 'soon'",
    "outputs in one": "outputs = '\"7\"'",
    "an output that is none": "outputs = '[7]'",
    "no extra data": "extra_data = 'null'",
    "an id that is none": "prompt_id = '3'",
    "an id that is no text": "prompt_id = CAST(x'ff' AS TEXT)",
    "too deep": f"extra_data = '{'[' * 200_000}'",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_row_that_cannot_be_read_is_kept_and_noted(case: str, path: Path) -> None:
    with opened(path) as journal:
        for prompt_id in "abc":
            journal.put(entry(prompt_id))
    change(path, f"UPDATE prompts SET {UNREADABLE[case]} WHERE place = 2")
    with opened(path) as journal:
        assert "table 'unreadable'" in journal.note
        assert str(path) in journal.note
        assert ids(journal) == ["a", "c"]
    with opened(path) as journal:
        assert journal.note == ""
        journal.put(entry("b"))
        assert ids(journal) == ["a", "c", "b"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM unreadable").fetchone() == (1,)


def test_a_damaged_file_name_takes_its_prompt_along(path: Path) -> None:
    with opened(path) as journal:
        journal.put(entry("a", placed={"7/0": "output/x.png", "7/1": "output/y.png"}))
        journal.put(entry("b"))
    change(path, "UPDATE placed SET file = 'x' WHERE key = '\"7/1\"'")
    with opened(path) as journal:
        assert '"a": ' in journal.note
        assert ids(journal) == ["b"]
    with closing(sqlite3.connect(path)) as db:
        ((files, reason),) = db.execute("SELECT placed, reason FROM unreadable").fetchall()
    assert "output/x.png" in files
    assert reason in ('"a": Expecting value: line 1 column 1 (char 0)',)
