"""ComfyUIs with one, two and three devices, and prompts that upscale."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import Master, wait_until

PACK = Path(__file__).parent / "pack"

Prompt = dict[str, dict[str, Any]]

#: As many devices -> the workers besides the master.
WORKERS = {1: "0", 2: "cpu", 3: "cpu,cpu"}


class Bed:
    """One ComfyUI, and a folder for orders and results."""

    def __init__(
        self,
        comfyui: Path,
        folder: Path,
        workers: str,
        models: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder / "orders"
        self.folder.mkdir(parents=True)
        self._names = itertools.count()
        if models is not None:
            (folder / "comfyui").mkdir()
            (folder / "comfyui" / "models").symlink_to(models)
        self.master = Master(
            comfyui, folder / "comfyui", workers=workers, packs={"bed": PACK}, settings=settings
        )

    def ready(self) -> None:
        """Wait until all workers are there."""
        self.compute(demo(), ["6", 0])
        wait_until(lambda: set(self.master.states().values()) == {"idle"}, "the workers")

    def wait_until_idle(self) -> None:
        """No worker has anything in hand, of what was cancelled neither."""
        wait_until(lambda: set(self.master.states().values()) <= {"idle"}, "the workers")

    def compute(self, prompt: Prompt, link: Sequence[Any]) -> np.ndarray[Any, Any]:
        """What a link of the prompt gives, exactly."""
        return self._begin(prompt, link)()

    def compute_losing(
        self, prompt: Prompt, link: Sequence[Any], order: str
    ) -> np.ndarray[Any, Any]:
        """The same while an order ends a worker, which has its part however fast others are."""
        others = self.master.states().keys() - {order.partition(".")[0]}
        self._act("disable", others)
        for each in ("hold", order):
            self.order(each)
        try:
            end = self._begin(prompt, link)
            wait_until(self._has_run, "the fleet's part")
            self.withdraw("hold")
            wait_until(lambda: not (self.folder / order).exists(), "the end of the worker")
        finally:
            self.withdraw("hold")
            self._act("enable", others)
        return end()

    def _begin(self, prompt: Prompt, link: Sequence[Any]) -> Callable[[], np.ndarray[Any, Any]]:
        """Queue the prompt; what is returned waits for its end, and gives what the link gave."""
        path = self.folder / f"{next(self._names)}.npy"
        self.forget()
        inputs = {"value": list(link), "path": str(path)}
        whole = self.here(prompt) | {"end": {"class_type": "TestDump", "inputs": inputs}}
        prompt_id = self.master.queue(whole)

        def end() -> np.ndarray[Any, Any]:
            self.master.succeed(prompt_id)
            found: np.ndarray[Any, Any] = np.load(path)
            return found

        return end

    def _has_run(self) -> bool:
        """Has the fleet its part of a prompt? Of tiles in a row it may not have one so far."""
        runs = self.master.get("/comfyfleet/v1/status")["runs"]
        return any(run["outcome"] in ("waiting", "running") for run in runs)

    def _act(self, action: str, workers: Iterable[str]) -> None:
        for each in workers:
            self.master.post(f"/comfyfleet/v1/workers/{each}/{action}", {})

    def here(self, prompt: Prompt) -> Prompt:
        """The prompt with this bed's folder."""
        return {
            node_id: {**node, "inputs": {**node["inputs"], "folder": str(self.folder)}}
            if node["class_type"].startswith("TestWatched")
            else node
            for node_id, node in prompt.items()
        }

    def order(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def withdraw(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def meeting(self, *names: str) -> Iterator[None]:
        """Each of these takes part in what is sampled meanwhile, whoever is faster."""
        self.order("meet", "\n".join(names))
        try:
            yield
        finally:
            self.withdraw("meet")

    def meet(self, name: str) -> None:
        """This is there, for those who wait for it."""
        with (self.folder / "samplings").open("a") as file:
            file.write(f"{name}\n")

    def forget(self) -> None:
        (self.folder / "samplings").unlink(missing_ok=True)

    @property
    def samplings(self) -> Counter[str]:
        """Who has sampled how often since the last prompt began."""
        path = self.folder / "samplings"
        return Counter(path.read_text().split() if path.exists() else [])


@contextmanager
def beds(
    comfyui: Path, folder: Path, counts: Sequence[int] = (1, 2, 3), models: Path | None = None
) -> Iterator[Mapping[int, Bed]]:
    """A bed for each number of devices."""
    with ExitStack() as stack:
        found = {}
        for count in counts:
            found[count] = Bed(comfyui, folder / str(count), WORKERS[count], models)
            stack.callback(found[count].master.close)
        yield found


def demo(**upscale: Any) -> Prompt:
    """A picture redrawn by the demo model; ``upscale``: inputs of Fleet Ultimate Upscale."""
    picture = {"width": 96, "height": 80, "count": 1, "channels": 3}
    for key in picture:
        picture[key] = upscale.pop(key, picture[key])
    inputs = {
        "image": ["1", 0],
        "model": ["3", 0],
        "positive": ["4", 0],
        "negative": ["5", 0],
        "vae": ["2", 2],
        "upscale_by": 2.0,
        "seed": 5,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 0.4,
        "mode_type": "Linear",
        "tile_width": 64,
        "tile_height": 64,
        "mask_blur": 4,
        "tile_padding": 16,
        "seam_fix_mode": "None",
        "seam_fix_denoise": 0.4,
        "seam_fix_width": 32,
        "seam_fix_mask_blur": 4,
        "seam_fix_padding": 16,
        "force_uniform_tiles": True,
        "tiled_decode": False,
        "batch_size": 1,
        **upscale,
    }
    return {
        "1": {"class_type": "TestPicture", "inputs": picture},
        "2": {"class_type": "FleetDemoModel", "inputs": {}},
        "3": {"class_type": "TestWatched", "inputs": {"model": ["2", 0], "folder": ""}},
        "4": text("a small blue circle, center, on white"),
        "5": text(""),
        "6": {"class_type": "FleetUpscale", "inputs": inputs},
    }


def text(prompt: str, clip: Sequence[Any] = ("2", 1)) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": list(clip)}}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(count: int = 1, width: int = 203, height: int = 150, channels: int = 3) -> Prompt:
    size = {"width": width, "height": height, "count": count, "channels": channels}
    return {"1": node("TestPicture", **size)}


def film(count: int, *, sound: bool = True, **size: int) -> Prompt:
    """A video in memory, of 10 frames a second."""
    prompt = picture(count, **size)
    prompt["20"] = node("TestTone", seconds=count / 10)
    audio = {"audio": ["20", 0]} if sound else {}
    prompt["21"] = node("CreateVideo", images=["1", 0], fps=10.0, **audio)
    return prompt


def by_model(link: list[Any], **inputs: Any) -> Prompt:
    """A video upscaled by the tiny model: node 23."""
    upscaled = node(
        "FleetModelUpscaleVideo", upscale_model=["22", 0], video=link, tile=64, **inputs
    )
    model = node("UpscaleModelLoader", model_name="tiny_esrgan.safetensors")
    return {"22": model, "23": upscaled}


def redrawn(video: Prompt, **inputs: Any) -> Prompt:
    """A video redrawn by the demo model: node 6."""
    prompt = demo(**inputs) | video
    del prompt["6"]["inputs"]["image"]
    prompt["6"]["inputs"]["video"] = ["21", 0]
    prompt["6"]["class_type"] = "FleetUpscaleVideo"
    return prompt
