"""Nodes for the tests of tiles: exact results on disk, and workers that are slow or die."""

from __future__ import annotations

import copy
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import comfy.patcher_extension
import execution
import nodes
import numpy as np
import torch

NAME = os.environ.get("COMFYFLEET_WORKER") or os.environ.get("BED") or "master"
_random = random.Random(os.getpid())


class Watched:
    """A model whose samplings are noted in a folder, and done there as is ordered.

    The master's wait while ``hold`` is there. ``meet`` holds the names of those for whom each
    sampling waits until they have begun one too. ``delay`` holds the most seconds that a sampling
    waits, by chance, and ``<worker>.slow`` those that each of this worker's waits;
    ``<worker>.kill`` ends that worker in the middle of its next one, ``<worker>.reply`` when its
    ComfyUI has ended it, before anybody is told; ``<worker>.error`` makes all of its samplings
    fail, and ``<worker>.memory`` too, as if its memory was too small. The master's name is
    ``master``.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "watch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"model": ("MODEL",), "folder": ("STRING", {})}
        return {"required": required, "optional": {"note": ("STRING", {})}}

    def watch(self, model: Any, folder: str, note: str = "") -> tuple[Any]:
        def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
            obey(Path(folder))
            return executor(*args, **kwargs)

        clone = model.clone()
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        clone.add_wrapper_with_key(kind, "watched", sample)
        return (clone,)


class WatchedUpscaler:
    """An upscale model whose tiles are noted and done as ``Watched`` does samplings."""

    RETURN_TYPES = ("UPSCALE_MODEL",)
    FUNCTION = "watch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"upscale_model": ("UPSCALE_MODEL", {}), "folder": ("STRING", {})}}

    def watch(self, upscale_model: Any, folder: str) -> tuple[Any]:
        return (Obedient(upscale_model, Path(folder)),)


class WatchedVAE:
    """The same of a VAE."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "watch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": ("VAE", {}), "folder": ("STRING", {})}}

    def watch(self, vae: Any, folder: str) -> tuple[Any]:
        clone = copy.copy(vae)
        clone.first_stage_model = Obedient(vae.first_stage_model, Path(folder))
        return (clone,)


class Obedient:
    """Does as is ordered before each tile, and is else the model that it stands for."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model, self._folder = model, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        obey(self._folder)
        return self._model(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        obey(self._folder)
        return self._model.decode(*args, **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        obey(self._folder)
        return self._model.encode(*args, **kwargs)


#: Only who never comes needs so long.
_MEET_S = 120.0
#: Of the last sampling.
_folder: Path | None = None


def obey(folder: Path) -> None:
    global _folder
    _folder = folder
    with (folder / "samplings").open("a") as file:
        file.write(f"{NAME}\n")
    while NAME == "master" and (folder / "hold").exists():
        time.sleep(0.01)
    if (folder / "meet").exists():
        meet(folder, set((folder / "meet").read_text().splitlines()))
    if (folder / "delay").exists():
        time.sleep(_random.random() * float((folder / "delay").read_text()))
    if (folder / f"{NAME}.slow").exists():
        time.sleep(float((folder / f"{NAME}.slow").read_text()))
    if (folder / f"{NAME}.error").exists():
        raise ValueError("told to fail")
    if (folder / f"{NAME}.memory").exists():
        raise torch.OutOfMemoryError("told that memory is too small")
    die_if_ordered(folder / f"{NAME}.kill")


def meet(folder: Path, others: set[str]) -> None:
    end = time.monotonic() + _MEET_S
    while missing := others - set((folder / "samplings").read_text().splitlines()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {missing}")
        time.sleep(0.01)


def die_if_ordered(order: Path) -> None:
    if order.exists():
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def die_before_replies() -> None:
    """Look for the order to die whenever this worker has ended a prompt."""
    end = execution.PromptQueue.task_done

    def task_done(*args: Any, **options: Any) -> None:
        end(*args, **options)
        if _folder is not None:
            die_if_ordered(_folder / f"{NAME}.reply")

    execution.PromptQueue.task_done = task_done


class Dump:
    """Keeps what arrives as it is: ``<name>.npy``."""

    RETURN_TYPES = ()
    FUNCTION = "dump"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {}), "path": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:
        return True

    def dump(self, value: Any, path: str) -> dict[str, Any]:
        tensor = value["samples"] if isinstance(value, dict) else value
        np.save(path, tensor.cpu().numpy())
        return {}


class Picture:
    """Pictures of smooth noise, the same everywhere."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {})
        kinds = {"width": number, "height": number, "count": number, "channels": number}
        return {"required": kinds}

    def make(self, width: int, height: int, count: int, channels: int) -> tuple[torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        small = torch.rand(count, channels, 2 + height // 16, 2 + width // 16, generator=generator)
        size = (height, width)
        large = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)
        return (large.movedim(1, -1).contiguous(),)


class Conditioning:
    """A conditioning of random numbers, for models without their text encoder."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"max": 10000}), "seed": ("INT", {})}}

    def make(self, width: int, seed: int) -> tuple[list[Any]]:
        generator = torch.Generator().manual_seed(seed)
        return ([[torch.randn(1, 16, width, generator=generator), {}]],)


class Texts:
    """A list: one text per line."""

    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"lines": ("STRING", {"multiline": True})}}

    def make(self, lines: str) -> tuple[list[str]]:
        return (lines.splitlines(),)


class Joined:
    """A list of pictures as one batch."""

    RETURN_TYPES = ("IMAGE",)
    INPUT_IS_LIST = True
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}

    def make(self, images: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.cat(images),)


class Region:
    """The left half of the picture is for this conditioning: an area, or a mask."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "kind": ("STRING", {})}}

    def make(self, conditioning: Any, kind: str) -> tuple[list[Any]]:
        mask = torch.zeros(1, 64, 64)
        mask[:, :, :32] = 1
        extra = {
            "area": {"area": ("percentage", 1.0, 0.5, 0, 0), "strength": 1.0},
            "mask": {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False},
        }[kind]
        return ([[embedding, {**rest, **extra}] for embedding, rest in conditioning],)


class Tone:
    """A sound of some seconds."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("FLOAT", {})}}

    def make(self, seconds: float) -> tuple[dict[str, Any]]:
        wave = torch.sin(torch.arange(int(44100 * seconds)) * 440 / 44100 * 6.2832)
        return ({"waveform": wave.expand(1, 2, -1), "sample_rate": 44100},)


NODE_CLASS_MAPPINGS = {
    "TestTone": Tone,
    "TestWatched": Watched,
    "TestWatchedUpscaler": WatchedUpscaler,
    "TestWatchedVAE": WatchedVAE,
    "TestDump": Dump,
    "TestPicture": Picture,
    "TestConditioning": Conditioning,
    "TestRegion": Region,
    "TestTexts": Texts,
    "TestJoined": Joined,
}
if NAME == "master":  # a node that only it has
    NODE_CLASS_MAPPINGS["TestHere"] = nodes.VAEDecode
die_before_replies()
