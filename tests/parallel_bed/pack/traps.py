"""A model in which one process fails on command, in the middle of a step."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.model_management
from torch import nn

LEADER = "leader"
#: The lists of blocks of the families; the trap is in the last block of each.
BLOCKS = ("blocks", "joint_blocks", "double_blocks")


def fail(what: str) -> None:
    """Do what the word says."""
    if what == "die":
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


class Hook:
    """Called before the last block, in every process that has the model."""

    def __init__(self, order: Path) -> None:
        self._order = order
        #: Times that the block was called, by the orders that were there.
        self._calls: Counter[str] = Counter()

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        try:
            order = json.loads(self._order.read_text())
        except FileNotFoundError:
            return
        me = os.environ.get("COMFYFLEET_WORKER") or LEADER
        if me not in order["who"]:
            return
        if order["what"] == "log":
            x = args[0]
            logging.info("trap: %s has %d x %d tokens", me, x.shape[0], x.shape[1])
            return
        self._calls[order["id"]] += 1
        if self._calls[order["id"]] == 1 + order["after"]:
            fail(order["what"])


class Trap:
    """The same MODEL. Each of its forwards looks whether there is an order in the file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "set"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "order": ("STRING", {})}}

    def set(self, model: Any, order: str):
        if not Path(order).parent.is_dir():
            raise FileNotFoundError(order)
        inner = model.model.diffusion_model
        blocks = next(getattr(inner, name) for name in BLOCKS if hasattr(inner, name))
        if not any(isinstance(hook, Hook) for hook in blocks[-1]._forward_pre_hooks.values()):
            blocks[-1].register_forward_pre_hook(Hook(Path(order)))
        return (model,)
