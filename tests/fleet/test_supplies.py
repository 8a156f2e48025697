"""What is asked of a node of a cluster, and sent to it, before a unit runs there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comfyfleet.client import files
from comfyfleet.client.inventory import Need
from comfyfleet.errors import InputError, Unfit
from comfyfleet.fleet import supplies
from comfyfleet.work import Failure

PIECE = 1000


class Node:
    """Keeps what is sent, as a node does."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lacking: list[Need] = []
        self.calls: list[str] = []
        self.full = False

    async def __call__(self, method: str, *args: Any) -> Any:
        self.calls.append(method)
        return getattr(self, method)(*args)

    def fitted(self, prompt: Any, coming: frozenset[str]) -> Any:
        self.coming = coming
        return prompt, self.lacking

    def take(self, name: str, size: int, start: int, data: bytes) -> int | Failure:
        if self.full:
            return Failure(message="no room on the disk")
        if start == len(self.files.get(name, b"")):
            self.files[name] = self.files.get(name, b"") + data
        return len(self.files[name])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "PIECE_BYTES", PIECE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a b.PNG").write_bytes(b"picture" * PIECE)
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


def send(
    folder: Path, node: Node, wanted: Callable[[], bool] = lambda: True, *names: str
) -> dict[str, Any]:
    inputs = {"images": list(names or ["sub/a b.PNG"])}
    prompt = {"1": {"class_type": "LoadAll", "inputs": inputs}}
    found = supplies.Supplies({"input": folder}).send("pc-gpu0", prompt, node, wanted)
    return dict(asyncio.run(found))


def test_a_long_text_is_no_file(folder: Path) -> None:
    """Longer than a name of a file can be, so that looking for it is an error of its own."""
    text = "a masterpiece " * 40
    assert send(folder, Node(), lambda: True, text)["1"]["inputs"]["images"] == [text]


def test_files_go_in_pieces_under_the_names_of_their_content(folder: Path) -> None:
    node = Node()
    prompt = send(folder, node)
    name = hashlib.sha256(b"picture" * PIECE).hexdigest()[:40] + ".png"
    assert prompt["1"]["inputs"]["images"] == [f"comfyfleet/{name}"]
    assert node.files == {name: b"picture" * PIECE} and node.coming == {f"comfyfleet/{name}"}
    assert node.calls == ["fitted", "take", *["take"] * 7]


def test_what_is_there_is_not_sent_again(folder: Path) -> None:
    node = Node()
    send(folder, node)
    node.calls = []
    send(folder, node)
    assert node.calls == ["fitted", "take"]


def test_nothing_is_sent_to_a_node_that_lacks_something(folder: Path) -> None:
    node = Node()
    node.lacking = [Need("Odd"), Need("x.safetensors", "VAELoader.vae_name")]
    with pytest.raises(
        Unfit, match=r"pc-gpu0 lacks node class Odd; .*: install the packs .* and put "
    ):
        send(folder, node)
    assert node.calls == ["fitted"]


def test_a_node_with_a_full_disk_is_unfit(folder: Path) -> None:
    node = Node()
    node.full = True
    with pytest.raises(Unfit, match="no room"):
        send(folder, node)


def test_a_unit_that_nobody_wants_any_more_stops_its_files(folder: Path) -> None:
    node, asked = Node(), iter([True, True, False])
    send(folder, node, lambda: next(asked))
    assert node.calls == ["fitted", "take", "take", "take"]


def test_a_file_that_shrinks_on_its_way_is_said(folder: Path) -> None:
    class Shrinking(Node):
        def take(self, *args: Any) -> int | Failure:
            (folder / "sub" / "a b.PNG").write_bytes(b"")
            return super().take(*args)

    with pytest.raises(InputError, match="became shorter"):
        send(folder, Shrinking())
