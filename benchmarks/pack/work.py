"""Nodes that stand for work of a known size, and workers that have trouble with it.

A folder holds orders for workers, so that the same prompt runs undisturbed and disturbed:
``<worker>.slow`` holds a factor, ``<worker>.memory`` makes the next attempt run out of memory, and
``<worker>.reply`` kills the worker once its ComfyUI has ended a prompt, before anybody is told.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import comfy.model_management
import execution
import torch

WORKER = os.environ.get("COMFYFLEET_WORKER", "")
#: How often a node that only waits looks whether it shall stop.
_LOOK_S = 0.02
#: The folder of the prompt that runs.
_orders = ""


class BenchWork:
    """Multiplies matrices: work of an exact size for one thread."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "work"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "amount": ("INT", {"max": 1_000_000})}}

    def work(self, image: torch.Tensor, amount: int) -> tuple[torch.Tensor]:
        matrix = torch.full((512, 512), 1 / 512)
        for _ in range(amount):
            comfy.model_management.throw_exception_if_processing_interrupted()
            matrix = matrix @ matrix
        return (image,)


class BenchPause:
    """Takes its time without computing, and does what is ordered for its worker."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "wait"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = ("STRING", {"default": ""})
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {}), "orders": text}}

    def wait(self, image: torch.Tensor, seconds: float, orders: str) -> tuple[torch.Tensor]:
        global _orders
        _orders = orders
        begun = time.monotonic()
        while time.monotonic() < begun + seconds * float(_order("slow") or 1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(_LOOK_S)
        if _order("memory"):
            (Path(orders) / f"{WORKER}.memory").unlink()
            raise torch.OutOfMemoryError("no memory is left, as was ordered")
        return (image,)


def _order(kind: str) -> str:
    """What is ordered for this worker; empty if nothing is."""
    path = Path(_orders) / f"{WORKER}.{kind}"
    return path.read_text() if _orders and WORKER and path.exists() else ""


def die_before_replies() -> None:
    """Look for the order to die whenever this worker has ended a prompt."""
    end = execution.PromptQueue.task_done

    def task_done(*args: Any, **options: Any) -> None:
        end(*args, **options)
        if _order("reply"):
            (Path(_orders) / f"{WORKER}.reply").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    execution.PromptQueue.task_done = task_done
