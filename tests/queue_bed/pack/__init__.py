"""Nodes for the tests of the shared queue: gates that hold a prompt, faults, and who ran it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import comfy.model_management
import nodes
import torch

WORKER = os.environ.get("COMFYFLEET_WORKER", "")


class Gate:
    """Says in a folder that it has been reached, and waits there until it is opened."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "wait"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = ("STRING", {})
        return {"required": {"image": ("IMAGE",), "folder": text, "name": text}}

    def wait(self, image: torch.Tensor, folder: str, name: str) -> tuple[torch.Tensor]:
        (Path(folder) / f"{name}.reached").write_text(WORKER or "master")
        while not (Path(folder) / f"{name}.open").exists():
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return (image,)


class Fault:
    """Raises: always, on the workers named, or out of memory."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "fail"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = ("STRING", {})
        return {"required": {"image": ("IMAGE",), "on": text, "kind": text}}

    def fail(self, image: torch.Tensor, on: str, kind: str) -> tuple[torch.Tensor]:
        if kind == "exit" and WORKER in on.split(","):
            sys.exit("a node ends the program")
        if on == "all" or WORKER in on.split(","):
            raise torch.OutOfMemoryError("no memory") if kind == "memory" else ValueError("broken")
        return (image,)


class Tone:
    """A sound."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pitch": ("FLOAT", {})}}

    def make(self, pitch: float) -> tuple[dict[str, Any]]:
        wave = torch.sin(torch.arange(8000) * pitch / 8000 * 6.2832)
        return ({"waveform": wave[None, None], "sample_rate": 8000},)


class Saver(nodes.SaveImage):
    """Saves, and gives the picture on."""

    RETURN_TYPES = ("IMAGE",)

    def save_images(self, images: torch.Tensor, **options: Any) -> dict[str, Any]:
        return {**super().save_images(images, **options), "result": (images,)}


class Vanisher(nodes.SaveImage):
    """Saves, and on the workers named nothing is left of it: as if the disk had gone."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        shape = super().INPUT_TYPES()
        return {**shape, "required": {**shape["required"], "on": ("STRING", {})}}

    def save_images(self, images: torch.Tensor, on: str, **options: Any) -> dict[str, Any]:
        found = super().save_images(images, **options)
        if WORKER in on.split(","):
            for each in found["ui"]["images"]:
                (Path(self.output_dir) / each["subfolder"] / each["filename"]).unlink()
        return found


class OnlyHere(Gate):
    """A node that only the master has."""


NODE_CLASS_MAPPINGS = {
    "TestGate": Gate,
    "TestFault": Fault,
    "TestTone": Tone,
    "TestSaver": Saver,
    "TestVanisher": Vanisher,
}
if not WORKER:
    NODE_CLASS_MAPPINGS["TestOnlyHere"] = OnlyHere
