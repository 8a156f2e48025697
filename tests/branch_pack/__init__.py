"""Test nodes that tell where they ran, meet each other, fail and wait."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import comfy.model_management
import torch

TEXT = ("STRING", {"default": ""})
COUNT = ("INT", {"default": 1, "min": 0, "max": 2**20})
#: How long a node waits for others: well within a test's own limit.
PATIENCE_S = 60.0


def note(file: str, what: str = "") -> None:
    """Add a line to a file: the name of this process, and what it has to say."""
    with Path(file).open("a") as log:
        log.write(f"{os.environ.get('COMFYFLEET_WORKER') or 'master'} {what}".strip() + "\n")


def wait_for(condition, what):
    """Poll until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {what}")
        time.sleep(0.01)


class Encode:
    """A text encoder that notes each of its runs."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "text": TEXT, "file": TEXT}}

    def run(self, clip, text, file):
        note(file)
        return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


class Attach:
    """A CONDITIONING with an object that cannot leave the process, as a ControlNet is."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning):
        return ([[text, {**extra, "test_object": object()}] for text, extra in conditioning],)


class Frames:
    """A batch of pictures of seeded noise."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": TEXT, "count": COUNT, "file": TEXT}}

    def run(self, name, count, file):
        note(file)
        generator = torch.Generator().manual_seed(len(name))
        return (torch.rand(count, 16, 16, 3, generator=generator),)


class Noted:
    """A picture as it is; notes the run and how many pictures there are."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "file": TEXT}}

    def run(self, image, file):
        note(file, str(image.shape[0]))
        return (image,)


class Tight:
    """A picture as it is, but workers run out of memory with too many of them.

    It notes how many there are, and then waits until the notes say something.
    """

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        waits = {"worker_waits": TEXT, "master_waits": TEXT}
        return {"required": {"image": ("IMAGE",), "most": COUNT, "file": TEXT}, "optional": waits}

    def run(self, image, most, file, worker_waits="", master_waits=""):
        on_worker = bool(os.environ.get("COMFYFLEET_WORKER"))
        note(file, str(image.shape[0]))
        if on_worker and image.shape[0] > most:
            raise torch.OutOfMemoryError(f"no memory for {image.shape[0]} pictures")
        wait_for(
            lambda: re.search(worker_waits if on_worker else master_waits, Path(file).read_text()),
            f"{worker_waits or master_waits} in {file}",
        )
        return (image,)


class Meet:
    """Waits until so many nodes of this kind run at the same moment, wherever they are."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "folder": TEXT, "name": TEXT, "count": COUNT}}

    def run(self, image, folder, name, count):
        note(str(Path(folder) / name))
        wait_for(lambda: len(list(Path(folder).iterdir())) >= count, f"{count} in {folder}")
        return (image,)


class Fail:
    """Fails, on workers only."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        if os.environ.get("COMFYFLEET_WORKER"):
            raise ValueError("this node fails as the test wants it")
        return (image,)


NODE_CLASS_MAPPINGS = {
    "TestEncode": Encode,
    "TestAttach": Attach,
    "TestFrames": Frames,
    "TestNoted": Noted,
    "TestTight": Tight,
    "TestMeet": Meet,
    "TestFail": Fail,
}
