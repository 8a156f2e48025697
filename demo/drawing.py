"""The first phase of the demo's training: a VAE learns to draw the grammar's pictures."""

from __future__ import annotations

import random
import time
from typing import Any

import grammar
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CROP = 64
VAE_LEARNING_RATE = 2e-3
WARMUP = 200
VAE_DECAY_SHARE = 0.8
WHOLE_PICTURES = 0.4
KL_WEIGHT = 1e-5


def learning_rate(step: int, steps: int, peak: float, decay_share: float) -> float:
    """Warm up, stay, and fall to nothing over the last `decay_share` of all steps."""
    rise = min(1.0, (step + 1) / WARMUP)
    fall = min(1.0, (steps - step) / (steps * decay_share))
    return peak * rise * fall


def step_optimizer(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One step down `loss` at learning rate `rate`, the gradient clipped to length 1."""
    group = optimizer.param_groups[0]
    group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def _to_tensor(pictures: list[grammar.Pixels], device: torch.device) -> Tensor:
    """uint8 pictures to floats from -1 to 1, shape (n, 3, height, width)."""
    stack = torch.from_numpy(np.stack(pictures)).to(device)
    return stack.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _vae_batch(specs: list[grammar.Spec], rng: random.Random, whole: bool) -> list[grammar.Pixels]:
    """Four whole pictures, or sixteen crops near the shape."""
    if whole:
        return [grammar.draw(rng.choice(specs), rng) for _ in range(4)]
    return [_crop(rng.choice(specs), rng) for _ in range(16)]


def _crop(spec: grammar.Spec, rng: random.Random) -> grammar.Pixels:
    room = grammar.IMAGE_SIZE - CROP
    x, y = (c - CROP / 2 + rng.uniform(-24, 24) for c in grammar.PLACES[spec.place])
    left, top = (round(min(room, max(0, v))) for v in (x, y))
    return grammar.draw(spec, rng)[top : top + CROP, left : left + CROP]


def _vae_loss(vae: Any, pictures: Tensor) -> Tensor:
    moments = vae.quant_conv(vae.encoder(pictures))
    mean, logvar = moments.chunk(2, dim=1)
    latent = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
    drawn = vae.decode(latent)
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    error = functional.l1_loss(drawn, pictures) + functional.mse_loss(drawn, pictures)
    return torch.add(error, kl, alpha=KL_WEIGHT)


def train_vae(vae: Any, steps: int, seed: int, device: torch.device) -> None:
    """Train the VAE in place, then scale its latents to mean 0 and variance 1."""
    specs = grammar.training_specs()
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    began = time.monotonic()
    for step in range(steps):
        rng = random.Random(f"{seed}/vae/{step}")
        torch.manual_seed(rng.getrandbits(40))
        whole = step >= steps * (1 - WHOLE_PICTURES)
        pictures = _to_tensor(_vae_batch(specs, rng, whole), device)
        loss = _vae_loss(vae, pictures)
        rate = learning_rate(step, steps, VAE_LEARNING_RATE, VAE_DECAY_SHARE)
        step_optimizer(optimizer, loss, rate)
        if step % 100 == 0 or step == steps - 1:
            report("vae", step, steps, float(loss.detach()), began)
    _scale_latents(vae, specs, seed, device)
    print(f"vae: {score_vae(vae, seed, device)}", flush=True)


def report(what: str, step: int, steps: int, loss: float, began: float) -> None:
    """Print one line of progress; `began` is on the monotonic clock."""
    seconds = time.monotonic() - began
    print(f"{what} {step}/{steps} loss {loss:.4f} {seconds:.0f}s", flush=True)


@torch.no_grad()
def encode(vae: Any, specs: list[grammar.Spec], seed: str, device: torch.device) -> Tensor:
    """Mean latents of one drawing of each spec, shape (n, 4, 16, 16), in chunks of 64."""
    rng, parts = random.Random(seed), []
    for i in range(0, len(specs), 64):
        pictures = [grammar.draw(spec, rng) for spec in specs[i : i + 64]]
        moments = vae.quant_conv(vae.encoder(_to_tensor(pictures, device)))
        parts.append(moments.chunk(2, dim=1)[0].cpu())
    return torch.cat(parts)


@torch.no_grad()
def _scale_latents(vae: Any, specs: list[grammar.Spec], seed: int, device: torch.device) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 layers on both sides."""
    chosen = random.Random(seed).sample(specs, 512)
    latents = encode(vae, chosen, f"{seed}/scale", device)
    mean, std = latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device)
    half = len(mean)
    inner, outer = vae.quant_conv, vae.post_quant_conv
    inner.weight[:half] /= std[:, None, None, None]
    inner.bias[:half] = (inner.bias[:half] - mean) / std
    inner.bias[half:] -= 2.0 * std.log()
    outer.bias += (outer.weight[:, :, 0, 0] * mean).sum(1)
    outer.weight *= std[None, :, None, None]


@torch.no_grad()
def score_vae(vae: Any, seed: int, device: torch.device, count: int = 128) -> str:
    """How well held-out drawings come back: mean PSNR in dB, and how many `check` knows."""
    specs = grammar.held_out_specs(count, seed)
    drawn = vae.decode(encode(vae, specs, f"{seed}/score", device).to(device))
    rng = random.Random(f"{seed}/score")
    wanted = _to_tensor([grammar.draw(spec, rng) for spec in specs], device)
    error = ((drawn.clamp(-1, 1) - wanted) / 2).square().mean((1, 2, 3))
    pictures = to_pixels(drawn.movedim(1, -1) / 2 + 0.5)
    good = sum(grammar.check(p, spec).good for p, spec in zip(pictures, specs, strict=True))
    return f"PSNR {float(-10 * error.log10().mean()):.1f} dB, {good}/{count} known again"


def to_pixels(images: Tensor) -> list[grammar.Pixels]:
    """ComfyUI images, floats from 0 to 1 of shape (n, height, width, 3), to uint8."""
    return list((images.clamp(0, 1) * 255).round().byte().cpu().numpy())
