"""A model in which one process fails on command, in the middle of a step."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.model_management
from torch import nn

LEADER = "leader"
#: The lists of blocks of the families; there is a trap in the first and in the last of each. In
#: the first, ranks that share the tokens have not exchanged anything yet.
BLOCKS = ("blocks", "joint_blocks", "double_blocks")
#: What is done when the node runs, and not in a forward.
EARLY = ("refuse", "vanish")


def fail(what: str, order: Path) -> None:
    """Do what the word says."""
    if what == "wait":
        while order.exists():
            time.sleep(0.01)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "error":
        raise RuntimeError("the trap")
    elif what == "memory":
        raise MemoryError("no room for the trap")
    elif what == "interrupt":
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()
    else:
        raise ValueError(f"unknown: {what}")


def who() -> str:
    return os.environ.get("COMFYFLEET_WORKER") or LEADER


def read(order: Path) -> dict[str, Any] | None:
    """The order in the file, if there is one for this process."""
    try:
        found = json.loads(order.read_text())
    except FileNotFoundError:
        return None
    return found if who() in found["who"] else None


def fail_early(what: str) -> None:
    """Fail while the model is still on its way, or just before its gang meets."""
    if what == "refuse":
        raise RuntimeError("refused by the trap")
    from comfyfleet.comfy import follow

    original = follow.take_place

    def vanish(*args: Any) -> Any:
        place = original(*args)  # its leader counts on it by then
        os.kill(os.getpid(), signal.SIGKILL)
        return place

    follow.take_place = vanish


class Watch:
    """Called when a block is, in every process that has the model."""

    def __init__(self, order: Path, place: str) -> None:
        self._order = order
        self._place = place
        #: Times that the block was called, by the orders that were there.
        self._calls: Counter[str] = Counter()

    def __call__(self, args: tuple[Any, ...]) -> None:
        order = read(self._order)
        if order is None or order["what"] in EARLY or order["place"] != self._place:
            return
        if order["what"] == "log":
            x = args[0]
            logging.info("trap: %s has %d x %d tokens", who(), x.shape[0], x.shape[1])
            return
        self._calls[order["id"]] += 1
        if self._calls[order["id"]] == 1 + order["after"]:
            fail(order["what"], self._order)


def watch(block: nn.Module, called: Watch) -> None:
    """As a class of its own: hooks, and methods of the object, are what Parallel Model refuses."""
    kind = type(block)
    if hasattr(kind, "watched"):
        return

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        called(args)
        return kind.forward(self, *args, **kwargs)

    block.__class__ = type(kind.__name__, (kind,), {"forward": forward, "watched": True})


class Trap:
    """The same MODEL. Each of its forwards looks whether there is an order in the file.

    ``key`` is for those who need the node to run again.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "set"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"key": ("STRING", {"default": ""})}
        return {"required": {"model": ("MODEL",), "order": ("STRING", {})}, "optional": optional}

    def set(self, model: Any, order: str, key: str = ""):
        if not Path(order).parent.is_dir():
            raise FileNotFoundError(order)
        if (found := read(Path(order))) is not None and found["what"] in EARLY:
            fail_early(found["what"])
        inner = model.model.diffusion_model
        blocks = next(getattr(inner, name) for name in BLOCKS if hasattr(inner, name))
        if len(blocks) > 1:
            watch(blocks[0], Watch(Path(order), "first"))
        watch(blocks[-1], Watch(Path(order), "last"))
        return (model,)
