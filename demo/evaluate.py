"""Scores the demo model on prompts that training never saw.

    python demo/evaluate.py --count 200 --seed 1 --sheet /tmp/sheet.png

The pictures come from ComfyUI's own sampling code, and `grammar.check` judges them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "src")]

import grammar  # noqa: E402  (found through the path above)
import train  # noqa: E402
from drawing import to_pixels  # noqa: E402

BATCH = 50
SHEET_COLUMNS = 10
PARTS = ("colour", "shape", "place", "size", "background")


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled; `seed` is the noise's."""

    steps: int = 12
    cfg: float = 3.0
    seed: int = 1
    sampler: str = "euler"
    scheduler: str = "simple"


@torch.inference_mode()
def sample_pictures(parts: Any, prompts: list[str], how: Sampling) -> list[grammar.Pixels]:
    """One uint8 picture (128, 128, 3) for each prompt, in batches.

    `parts` is what `load_demo_model` returns.
    """
    pictures: list[grammar.Pixels] = []
    for i in range(0, len(prompts), BATCH):
        pictures += _sample_batch(parts, prompts[i : i + BATCH], how, how.seed + i)
    return pictures


def _sample_batch(parts: Any, prompts: list[str], how: Sampling, seed: int) -> list[grammar.Pixels]:
    import comfy.sample

    model, clip, vae = parts
    side = grammar.IMAGE_SIZE // 8
    latent = torch.zeros(len(prompts), 4, side, side)
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        how.steps,
        how.cfg,
        how.sampler,
        how.scheduler,
        _encode(clip, prompts),
        _encode(clip, [""]),
        latent,
        disable_pbar=True,
        seed=seed,
    )
    return to_pixels(vae.decode(samples))


def _encode(clip: Any, prompts: list[str]) -> list[list[Any]]:
    """ComfyUI conditioning that holds one prompt for each picture of the batch."""
    pairs = [clip.encode_from_tokens(clip.tokenize(t), return_pooled=True) for t in prompts]
    context, pooled = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return [[context, {"pooled_output": pooled}]]


def summary(verdicts: list[grammar.Verdict]) -> str:
    """How many of the pictures are right, in whole and part by part."""
    right = Counter(part for v in verdicts for part in PARTS if getattr(v, part))
    good = sum(v.good for v in verdicts)
    shares = ", ".join(f"{part} {right[part]}" for part in PARTS)
    return f"colour and shape right: {good}/{len(verdicts)} ({shares})"


def save_sheet(pictures: list[grammar.Pixels], path: Path) -> None:
    """Write the pictures side by side, ten to a row."""
    rows = -(-len(pictures) // SHEET_COLUMNS)
    size = grammar.IMAGE_SIZE
    sheet = Image.new("RGB", (SHEET_COLUMNS * size, rows * size))
    for i, picture in enumerate(pictures):
        place = (i % SHEET_COLUMNS * size, i // SHEET_COLUMNS * size)
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), place)
    sheet.save(path)


def main(arguments: list[str]) -> None:
    """Score a weights file as the command line says."""
    parser = argparse.ArgumentParser(description="Score ComfyFleet's demo model.")
    parser.add_argument("--weights", type=Path, default=ROOT / "demo" / "weights.safetensors")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="chooses prompts and noise")
    parser.add_argument("--steps", type=int, default=Sampling.steps)
    parser.add_argument("--cfg", type=float, default=Sampling.cfg)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="PNG of all pictures to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    arch = train.load_architecture(use_cpu=not torch.cuda.is_available())
    specs = grammar.held_out_specs(options.count, options.seed)
    parts, began = arch.load_demo_model(options.weights), time.monotonic()
    how = Sampling(steps=options.steps, cfg=options.cfg, seed=options.seed)
    pictures = sample_pictures(parts, [grammar.prompt(spec) for spec in specs], how)
    seconds = time.monotonic() - began
    verdicts = [grammar.check(p, spec) for p, spec in zip(pictures, specs, strict=True)]
    print(f"{summary(verdicts)}; {seconds / len(specs):.2f} s a picture")
    if options.sheet:
        save_sheet(pictures, options.sheet)


if __name__ == "__main__":
    main(sys.argv[1:])
