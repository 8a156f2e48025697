"""Nodes for the tests of the shared queue: gates that hold a prompt, faults, and who ran it."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import nodes
import torch
from PIL import Image

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
            self._leave_if_interrupted(Path(folder) / f"{name}.left")
            time.sleep(0.01)
        return (image,)

    def _leave_if_interrupted(self, note: Path) -> None:
        """Say when, by the clock that all processes of a machine share."""
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            note.write_text(str(time.monotonic()))
            raise


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


class Note:
    """Saves a text, and names it to nobody."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "save"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "name": ("STRING", {})}}

    def save(self, image: torch.Tensor, name: str) -> tuple[torch.Tensor]:
        (Path(folder_paths.get_output_directory()) / name).write_text(f"this is {name}")
        return (image,)


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


class Extremes:
    """A picture with values that no file of 8 bit holds, and ``shift`` to tell shares apart."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"shift": ("INT", {"max": 100})}}

    def make(self, shift: int) -> tuple[torch.Tensor]:
        return (torch.tensor([1.01, -0.01, 1 / 3]).expand(1, 8, 8, 3) + shift,)


class Alive:
    """Says which objects of ours live in this process, by class: a leak is made of them."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "count"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"look": ("INT", {})}}

    def count(self, look: int) -> dict[str, Any]:
        gc.collect()
        classes = (type(each) for each in gc.get_objects())
        ours = (cls.__name__ for cls in classes if str(cls.__module__).startswith("comfyfleet."))
        return {"ui": {"text": [json.dumps(Counter(ours))]}}


class LoadAll:
    """Pictures of one size as a batch, by a list of their names."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "load"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("TEST_NAMES", {})}}

    def load(self, images: list[str]) -> tuple[torch.Tensor]:
        return (torch.cat([nodes.LoadImage().load_image(name)[0] for name in images]),)


class Previews:
    """Shows a picture at each of its steps, as samplers do whose models have a way to."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "steps": ("INT", {"default": 3})}}

    def run(self, image: torch.Tensor, steps: int) -> tuple[torch.Tensor]:
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            shown = Image.new("RGB", (16, 16), (60 * step, 0, 0))
            bar.update_absolute(step + 1, steps, ("JPEG", shown, None))
        return (image,)


class OnlyHere(Gate):
    """A node that only the master has."""


NODE_CLASS_MAPPINGS = {
    "TestGate": Gate,
    "TestFault": Fault,
    "TestTone": Tone,
    "TestSaver": Saver,
    "TestNote": Note,
    "TestVanisher": Vanisher,
    "TestExtremes": Extremes,
    "TestAlive": Alive,
    "TestLoadAll": LoadAll,
    "TestPreviews": Previews,
}
if not WORKER:
    NODE_CLASS_MAPPINGS["TestOnlyHere"] = OnlyHere
