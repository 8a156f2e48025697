"""Trains the demo model from nothing but `grammar.py`, and writes one weights file.

    python demo/train.py                      # everything, with the defaults
    python demo/train.py --resume-from STATE  # goes on where a stopped run was

First the VAE learns to draw (64x64 crops, then whole pictures), then a pool of pictures is
put through its encoder once, and the transformer and the text encoder learn on those latents
together.  Every random choice comes from --seed and the step's number, so a resumed run draws
the same data as one that was never stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "src")]

import grammar  # noqa: E402  (found through the path above)
from drawing import encode, learning_rate, report, step_optimizer, train_vae  # noqa: E402

POOL = 16384
BATCH = 32
EMPTY_PROMPTS = 0.1
SHORT_PROMPTS = 0.15
EMA_DECAY = 0.999
DECAY_SHARE = 0.4
EMA_WARMUP = 10
LEARNING_RATE = 1e-3
FIRST_LOGVAR = -5.0
PROMPT_FIELDS = ("size", "place", "background")


@dataclass
class Nets:
    """The three networks in training, all fp32."""

    vae: Any
    unet: Any
    clip: Any

    def denoiser(self) -> dict[str, Tensor]:
        """The weights that the second phase trains, by their name in the weights file."""
        text = self.clip.named_parameters()
        named = {f"model.diffusion_model.{k}": v for k, v in self.unet.named_parameters()}
        named.update({f"text_encoders.{k}": v for k, v in text if not k.endswith("logit_scale")})
        return named


def load_architecture(use_cpu: bool) -> Any:
    """Put ComfyUI on the path and import the module that holds the model's shape."""
    home = Path(os.environ.get("COMFYUI_PATH", ROOT / ".cache" / "ComfyUI"))
    if not (home / "comfy").is_dir():
        raise SystemExit(f"no ComfyUI at {home}; set COMFYUI_PATH to a ComfyUI checkout")
    if str(home) not in sys.path:
        sys.path.append(str(home))
    import comfy.cli_args

    comfy.cli_args.args.cpu = use_cpu
    comfy.cli_args.args.use_pytorch_cross_attention = True
    from comfyfleet.comfy import demo_model

    return demo_model


def build(arch: Any, device: torch.device, seed: int) -> Nets:
    """Fresh networks with weights drawn from `seed`."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(**arch.VAE_CONFIG["params"])
    arch.share_norm_groups(vae)
    config = arch.demo_config()
    config.set_inference_dtype(torch.float32, None)
    unet = config.get_model({}, "", device="cpu").diffusion_model
    clip = arch.DemoClip(device="cpu", dtype=torch.float32)
    for net in (vae, unet, clip):
        _first_weights(net)
    _quiet_starts(vae, unet)
    _allow_gradients(clip)
    return Nets(vae.to(device), unet.to(device), clip.to(device))


def _first_weights(net: torch.nn.Module) -> None:
    """ComfyUI's layers start as raw memory; give each a usual start."""
    for name, value in net.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(value, std=0.3)
        elif value.ndim > 1:
            torch.nn.init.xavier_uniform_(value)
        elif value.ndim == 1:
            torch.nn.init.constant_(value, 0.0 if name.endswith("bias") else 1.0)


def _quiet_starts(vae: Any, unet: Any) -> None:
    """Little noise from the VAE; transformer blocks that begin as the identity."""
    half = vae.quant_conv.weight.shape[0] // 2
    with torch.no_grad():
        vae.quant_conv.weight[half:] = 0.0
        vae.quant_conv.bias[half:] = FIRST_LOGVAR
        for name, value in unet.named_parameters():
            if "adaLN_modulation" in name or "final_layer.linear" in name:
                value.zero_()


def _allow_gradients(clip: torch.nn.Module) -> None:
    """Make ComfyUI's frozen text model trainable.

    Its layers add in place to what their norms must keep for the backward pass, so each norm
    is given a copy.
    """
    for name, value in clip.named_parameters():
        value.requires_grad_(not name.endswith("logit_scale"))
    for name, module in clip.named_modules():
        if "layer_norm" in name:
            module.register_forward_pre_hook(lambda _module, args: (args[0].clone(),))


@dataclass
class Pool:
    """Latents (n, 4, 16, 16) and the specs that they show."""

    latents: Tensor
    specs: list[grammar.Spec]


def make_pool(vae: Any, options: argparse.Namespace, device: torch.device) -> Pool:
    """Draw and encode the pictures that the transformer learns from."""
    began, known = time.monotonic(), grammar.training_specs()
    rng = random.Random(f"{options.seed}/pool")
    specs = [known[i % len(known)] for i in range(options.pool)]
    rng.shuffle(specs)
    latents = encode(vae, specs, f"{options.seed}/pictures", device)
    print(f"pool of {len(specs)} in {time.monotonic() - began:.0f}s", flush=True)
    return Pool(latents, specs)


def _caption(spec: grammar.Spec, rng: random.Random) -> str:
    """Mostly the full prompt, at times an empty one or one that leaves things unsaid."""
    draw = rng.random()
    if draw < EMPTY_PROMPTS:
        return ""
    if draw < EMPTY_PROMPTS + SHORT_PROMPTS:
        return grammar.prompt(spec, frozenset(f for f in PROMPT_FIELDS if rng.random() < 0.5))
    return grammar.prompt(spec)


def _batches(
    pool: Pool, tokenizer: Any, seed: int, first: int, last: int
) -> Iterator[tuple[int, Tensor, list[list[int]]]]:
    """Step number, latents and token ids, each step's choice from its number alone."""
    for step in range(first, last):
        rng = random.Random(f"{seed}/denoiser/{step}")
        torch.manual_seed(rng.getrandbits(40))
        picks = [rng.randrange(len(pool.specs)) for _ in range(BATCH)]
        texts = [_caption(pool.specs[i], rng) for i in picks]
        chunks = [tokenizer.tokenize_with_weights(text)["demo"][0] for text in texts]
        yield step, pool.latents[picks], [[token for token, _ in chunk] for chunk in chunks]


def _denoiser_loss(nets: Nets, latents: Tensor, tokens: list[list[int]]) -> Tensor:
    """Flow matching: from a mix of picture and noise, tell the noise minus the picture."""
    context, pooled = nets.clip.clip_demo(tokens)
    noise = torch.randn_like(latents)
    sigma = torch.randn(len(latents), device=latents.device).mul(1.2).add(0.3).sigmoid()
    amount = sigma[:, None, None, None]
    mixed = (1 - amount) * latents + amount * noise
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(latents.device.type, torch.bfloat16):
        flow = nets.unet(mixed, sigma * 1000.0, context, pooled)
    return functional.mse_loss(flow.float(), noise - latents)


@dataclass
class Progress:
    """Where the second phase is: what a state file holds beside the networks."""

    step: int
    seconds: float
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    commands: list[str]


def _update_ema(ema: dict[str, Tensor], weights: dict[str, Tensor], step: int) -> None:
    decay = min(EMA_DECAY, (1 + step) / (EMA_WARMUP + step))
    with torch.no_grad():
        averages = [ema[name] for name in weights]
        torch._foreach_lerp_(averages, [w.detach() for w in weights.values()], 1 - decay)


def train_denoiser(
    nets: Nets, progress: Progress, pool: Pool, arch: Any, options: argparse.Namespace
) -> None:
    """Train transformer and text encoder from `progress.step` to --steps, saving as it goes."""
    device, steps = next(nets.unet.parameters()).device, options.steps
    tokenizer = arch.DemoTokenizer(tokenizer_data=vocabulary())
    weights, began, mean = nets.denoiser(), time.monotonic() - progress.seconds, 1.0
    for step, latents, tokens in _batches(pool, tokenizer, options.seed, progress.step, steps):
        loss = _denoiser_loss(nets, latents.to(device), tokens)
        rate = learning_rate(step, steps, LEARNING_RATE, DECAY_SHARE)
        step_optimizer(progress.optimizer, loss, rate)
        _update_ema(progress.ema, weights, step)
        mean = 0.99 * mean + 0.01 * float(loss.detach())
        progress.step, progress.seconds = step + 1, time.monotonic() - began
        if step % 100 == 0:
            report("denoiser", step, steps, mean, began)
        if progress.step % options.save_every == 0 or progress.step == steps:
            save(nets, progress, arch, options)


def vocabulary() -> dict[str, Any]:
    """The tokenizer's data: every word of the grammar and its other spellings."""
    return {"demo_words": list(grammar.WORDS), "demo_aliases": grammar.ALIASES}


def save(nets: Nets, progress: Progress, arch: Any, options: argparse.Namespace) -> None:
    """Write the weights file (averaged weights, fp16) and the state to resume from."""
    tensors = dict(progress.ema)
    tensors.update({arch.VAE_PREFIX + k: v for k, v in nets.vae.state_dict().items()})
    half = {name: value.detach().half().cpu().contiguous() for name, value in tensors.items()}
    save_file(half, options.out, metadata=_metadata(progress, arch, options))
    state = {
        "vae": nets.vae.state_dict(),
        "unet": nets.unet.state_dict(),
        "clip": nets.clip.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        **{name: getattr(progress, name) for name in ("step", "seconds", "ema", "commands")},
    }
    options.state.parent.mkdir(parents=True, exist_ok=True)
    partial = options.state.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(options.state)


def _metadata(progress: Progress, arch: Any, options: argparse.Namespace) -> dict[str, str]:
    return {
        "format": arch.FORMAT,
        "seed": str(options.seed),
        "commands": json.dumps(progress.commands),
        "vae_steps": str(options.vae_steps),
        "steps": str(progress.step),
        "planned_steps": str(options.steps),
        "denoiser_seconds": f"{progress.seconds:.0f}",
        "torch": torch.__version__,
        "words": json.dumps(grammar.WORDS),
        "aliases": json.dumps(grammar.ALIASES),
    }


def _start(nets: Nets, options: argparse.Namespace) -> Progress:
    weights = nets.denoiser()
    optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.99), weight_decay=0.01)
    ema = {name: value.detach().clone() for name, value in weights.items()}
    command = " ".join(["python", "demo/train.py", *sys.argv[1:]])
    return Progress(0, 0.0, ema, optimizer, [command])


def _resume(nets: Nets, progress: Progress, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("vae", "unet", "clip"):
        getattr(nets, name).load_state_dict(state[name])
    progress.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["ema"].items():
        progress.ema[name].copy_(value)
    progress.step, progress.seconds = state["step"], state["seconds"]
    progress.commands = state["commands"] + progress.commands


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train ComfyFleet's demo model.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vae-steps", type=int, default=3500)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--pool", type=int, default=POOL, help="pictures to learn from")
    parser.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "weights.safetensors")
    parser.add_argument("--state", type=Path, default=ROOT / ".cache" / "demo-training.state")
    parser.add_argument("--resume-from", type=Path, metavar="STATE")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    arch = load_architecture(use_cpu=device.type == "cpu")
    nets = build(arch, device, options.seed)
    progress = _start(nets, options)
    if options.resume_from:
        _resume(nets, progress, options.resume_from)
    else:
        train_vae(nets.vae, options.vae_steps, options.seed, device)
        save(nets, progress, arch, options)
    pool = make_pool(nets.vae, options, device)
    train_denoiser(nets, progress, pool, arch, options)


if __name__ == "__main__":
    main(sys.argv[1:])
