"""Tiny random model files that ComfyUI's stock loaders accept.

ComfyUI reads a model's sizes off its weights. What it does not read is a constant here:

- Wan: heads = dim / 128, text width 4096, time width 256.
- SD3: heads = blocks = hidden size / 64.
- HunyuanVideo: heads = dim / 128, MLP ratio 4, pooled width 768, two token refiner blocks.

The weights keep activations near 1, gates and modulations included, so that each block matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]

WAN_TEXT = 4096
SD3_TEXT = 128
SD3_POOLED = 2048
HUNYUAN_TEXT = 96
HUNYUAN_POOLED = 768
#: Width of the sinusoidal embedding of the timestep, in all families.
TIME = 256
#: Tokens per side of SD3's table of positions: the largest latent is twice as wide.
SD3_GRID = 24
CHANNELS = 16


@dataclass
class Random:
    """Seeded weights, collected under the names that they have in a file."""

    seed: int
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> None:
        self.weights[name] = torch.randn(shape, generator=self.generator) * std + mean

    def linear(
        self, name: str, inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True
    ) -> None:
        """A linear layer that keeps the size of its input, times ``gain``."""
        self.normal(f"{name}.weight", outputs, inputs, std=gain * inputs**-0.5)
        if bias:
            self.normal(f"{name}.bias", outputs, std=0.1 * gain)

    def conv(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        """A convolution that keeps the size of its input, times ``gain``."""
        fan = inputs * int(torch.tensor(kernel).prod())
        self.normal(f"{name}.weight", outputs, inputs, *kernel, std=gain * fan**-0.5)
        if bias:
            self.normal(f"{name}.bias", outputs, std=0.1 * gain)

    def mlp(self, first: str, second: str, inputs: int, hidden: int, outputs: int) -> None:
        """Two linear layers with an activation between them, which halves what goes through."""
        self.linear(first, inputs, hidden)
        self.linear(second, hidden, outputs, gain=2.0)

    def time(self, first: str, second: str, dim: int) -> None:
        """The layers after a sinusoidal embedding; smooth in time, as a trained model is."""
        self.mlp(first, second, TIME, dim, dim)
        slow = (torch.arange(TIME) % (TIME // 2)) >= TIME // 4  # the columns, by their frequency
        self.weights[f"{first}.weight"] *= torch.where(slow, 2**0.5, 0.05)

    def scale(self, name: str, dim: int) -> None:
        """The factor of a norm of queries or keys; large, so that attention picks and chooses."""
        self.normal(name, dim, std=0.2, mean=1.6)

    def norm(self, name: str, dim: int) -> None:
        """A norm with factor and offset."""
        self.normal(f"{name}.weight", dim, std=0.2, mean=1.0)
        self.normal(f"{name}.bias", dim, std=0.1)


def wan(*, heads: int = 2, depth: int = 3, ffn: int = 512, seed: int = 1) -> Weights:
    """A Wan 2.1 text-to-video model."""
    make, dim = Random(seed), 128 * heads
    make.conv("patch_embedding", CHANNELS, dim, (1, 2, 2))
    make.mlp("text_embedding.0", "text_embedding.2", WAN_TEXT, dim, dim)
    make.time("time_embedding.0", "time_embedding.2", dim)
    make.linear("time_projection.1", dim, 6 * dim)
    for i in range(depth):
        _wan_block(make, f"blocks.{i}", dim, ffn)
    make.linear("head.head", dim, 4 * CHANNELS)
    make.normal("head.modulation", 1, 2, dim, std=0.3)
    return make.weights


def _wan_block(make: Random, name: str, dim: int, ffn: int) -> None:
    for attention in ("self_attn", "cross_attn"):
        for part in ("q", "k", "v", "o"):
            make.linear(f"{name}.{attention}.{part}", dim, dim)
        make.scale(f"{name}.{attention}.norm_q.weight", dim)
        make.scale(f"{name}.{attention}.norm_k.weight", dim)
    make.norm(f"{name}.norm3", dim)
    make.mlp(f"{name}.ffn.0", f"{name}.ffn.2", dim, ffn, dim)
    make.normal(f"{name}.modulation", 1, 6, dim, std=0.3)


def sd3(
    *, heads: int = 4, norms: bool = False, twofold: Sequence[int] = (), seed: int = 2
) -> Weights:
    """An SD3 MMDiT; with ``norms`` and blocks of ``twofold`` attention, an SD3.5 medium."""
    make, dim = Random(seed), 64 * heads
    make.conv("x_embedder.proj", CHANNELS, dim, (2, 2))
    make.normal("pos_embed", 1, SD3_GRID**2, dim, std=0.7)
    make.time("t_embedder.mlp.0", "t_embedder.mlp.2", dim)
    make.mlp("y_embedder.mlp.0", "y_embedder.mlp.2", SD3_POOLED, dim, dim)
    make.linear("context_embedder", SD3_TEXT, dim)
    for i in range(heads):
        block = f"joint_blocks.{i}"
        _sd3_stream(make, f"{block}.context_block", dim, norms=norms, last=i == heads - 1)
        _sd3_stream(make, f"{block}.x_block", dim, norms=norms, twofold=i in twofold)
    make.linear("final_layer.linear", dim, 4 * CHANNELS)
    make.linear("final_layer.adaLN_modulation.1", dim, 2 * dim)
    return make.weights


def _sd3_stream(
    make: Random, name: str, dim: int, *, norms: bool, last: bool = False, twofold: bool = False
) -> None:
    """One half of a joint block; the text's half of the last block only feeds the attention."""
    for attention in ("attn", "attn2") if twofold else ("attn",):
        make.linear(f"{name}.{attention}.qkv", dim, 3 * dim)
        if norms:
            make.scale(f"{name}.{attention}.ln_q.weight", 64)
            make.scale(f"{name}.{attention}.ln_k.weight", 64)
        if not last:
            make.linear(f"{name}.{attention}.proj", dim, dim)
    if not last:
        make.mlp(f"{name}.mlp.fc1", f"{name}.mlp.fc2", dim, 4 * dim, dim)
    parts = 2 if last else 9 if twofold else 6
    make.linear(f"{name}.adaLN_modulation.1", dim, parts * dim)


def hunyuan(*, heads: int = 2, double: int = 2, single: int = 2, seed: int = 3) -> Weights:
    """A HunyuanVideo text-to-video model."""
    make, dim = Random(seed), 128 * heads
    make.conv("img_in.proj", CHANNELS, dim, (1, 2, 2))
    make.mlp("vector_in.in_layer", "vector_in.out_layer", HUNYUAN_POOLED, dim, dim)
    make.time("time_in.in_layer", "time_in.out_layer", dim)
    make.time("guidance_in.in_layer", "guidance_in.out_layer", dim)
    _hunyuan_text(make, dim)
    for i in range(double):
        for stream in ("img", "txt"):
            _hunyuan_stream(make, f"double_blocks.{i}.{stream}", dim)
    for i in range(single):
        make.linear(f"single_blocks.{i}.linear1", dim, 7 * dim)
        make.linear(f"single_blocks.{i}.linear2", 5 * dim, dim)
        make.linear(f"single_blocks.{i}.modulation.lin", dim, 3 * dim)
        make.scale(f"single_blocks.{i}.norm.query_norm.scale", 128)
        make.scale(f"single_blocks.{i}.norm.key_norm.scale", 128)
    make.linear("final_layer.linear", dim, 4 * CHANNELS)
    make.linear("final_layer.adaLN_modulation.1", dim, 2 * dim)
    return make.weights


def _hunyuan_text(make: Random, dim: int) -> None:
    make.linear("txt_in.input_embedder", HUNYUAN_TEXT, dim)
    make.time("txt_in.t_embedder.in_layer", "txt_in.t_embedder.out_layer", dim)
    make.mlp("txt_in.c_embedder.in_layer", "txt_in.c_embedder.out_layer", HUNYUAN_TEXT, dim, dim)
    for i in range(2):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        make.linear(f"{block}.adaLN_modulation.1", dim, 2 * dim)
        make.norm(f"{block}.norm1", dim)
        make.linear(f"{block}.self_attn.qkv", dim, 3 * dim)
        make.linear(f"{block}.self_attn.proj", dim, dim)
        make.norm(f"{block}.norm2", dim)
        make.mlp(f"{block}.mlp.0", f"{block}.mlp.2", dim, 4 * dim, dim)


def _hunyuan_stream(make: Random, name: str, dim: int) -> None:
    make.linear(f"{name}_mod.lin", dim, 6 * dim)
    make.linear(f"{name}_attn.qkv", dim, 3 * dim)
    make.scale(f"{name}_attn.norm.query_norm.scale", 128)
    make.scale(f"{name}_attn.norm.key_norm.scale", 128)
    make.linear(f"{name}_attn.proj", dim, dim)
    make.mlp(f"{name}_mlp.0", f"{name}_mlp.2", dim, 4 * dim, dim)


def lora(weights: Weights, *, rank: int = 4, strength: float = 0.5, seed: int = 4) -> Weights:
    """A LoRA for all linear layers in blocks: it adds ``strength`` times the size of each."""
    made: Weights = {}
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        if weight.ndim != 2 or "blocks." not in name or not name.endswith(".weight"):
            continue
        outputs, inputs = weight.shape
        layer = "diffusion_model." + name.removesuffix(".weight")
        up = torch.randn(outputs, rank, generator=generator) * strength * rank**-0.5
        down = torch.randn(rank, inputs, generator=generator) * weight.std()
        made |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
    return made


def sd3_controlnet(*, heads: int = 4, seed: int = 5) -> Weights:
    """An SD3 ControlNet in diffusers' layout: residuals for all blocks but the last."""
    make, dim, blocks = Random(seed), 64 * heads, heads // 2
    make.conv("pos_embed.proj", CHANNELS, dim, (2, 2))
    make.normal("pos_embed.pos_embed", 1, SD3_GRID**2, dim, std=0.7)
    make.conv("pos_embed_input.proj", CHANNELS, dim, (2, 2))
    embed = "time_text_embed"
    time, text = f"{embed}.timestep_embedder.linear", f"{embed}.text_embedder.linear"
    make.time(f"{time}_1", f"{time}_2", dim)
    make.mlp(f"{text}_1", f"{text}_2", SD3_POOLED, dim, dim)
    make.linear("context_embedder", SD3_TEXT, dim)
    for i in range(blocks):
        _controlnet_block(make, f"transformer_blocks.{i}", dim)
        make.linear(f"controlnet_blocks.{i}", dim, dim, gain=0.5)
    return make.weights


def _controlnet_block(make: Random, name: str, dim: int) -> None:
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    texts = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for part in (*parts, *texts):
        make.linear(f"{name}.attn.{part}", dim, dim)
    for feed in ("ff", "ff_context"):
        make.mlp(f"{name}.{feed}.net.0.proj", f"{name}.{feed}.net.2", dim, 4 * dim, dim)
    make.linear(f"{name}.norm1.linear", dim, 6 * dim)
    make.linear(f"{name}.norm1_context.linear", dim, 6 * dim)


def taesd3(*, seed: int = 6) -> tuple[Weights, Weights]:
    """Encoder and decoder of a TAESD for latents of 16 channels; its size is fixed."""
    encoder, decoder = Random(seed), Random(seed + 1)
    _taesd_layers(encoder, "cbdbbbdbbbdbbb")
    encoder.conv("14", 64, CHANNELS, (3, 3))
    decoder.conv("1", CHANNELS, 64, (3, 3), gain=1.4)
    _taesd_layers(decoder, "...bbb.dbbb.dbbb.db")
    decoder.conv("19", 64, 3, (3, 3), gain=0.3)
    return encoder.weights, decoder.weights


def _taesd_layers(make: Random, layers: str) -> None:
    """Layers by letter: c the first convolution, b a block, d one without bias, a dot none."""
    for i, letter in enumerate(layers):
        if letter == "c":
            make.conv(f"{i}", 3, 64, (3, 3), gain=2.0)
        elif letter == "d":
            make.conv(f"{i}", 64, 64, (3, 3), gain=1.4, bias=False)
        elif letter == "b":
            for part, gain in ((0, 1.4), (2, 1.4), (4, 0.5)):
                make.conv(f"{i}.conv.{part}", 64, 64, (3, 3), gain=gain)


#: Models by family and number of heads: an even number, and one that no two ranks share evenly.
MODELS = {
    "wan-2": lambda: wan(heads=2),
    "wan-3": lambda: wan(heads=3, depth=2),
    "sd3-4": lambda: sd3(heads=4),
    "sd3-3": lambda: sd3(heads=3),
    "sd35-4": lambda: sd3(heads=4, norms=True, twofold=(0, 2)),
    "sd35-3": lambda: sd3(heads=3, norms=True, twofold=(0,)),
    "hunyuan-2": lambda: hunyuan(heads=2),
    "hunyuan-3": lambda: hunyuan(heads=3, double=1, single=1),
}


def write_models(models: Path, names: Iterable[str] = tuple(MODELS)) -> None:
    """Write models with a LoRA each, for SD3 a ControlNet and a VAE, into ComfyUI's folders.

    All files of a model have its name: ``diffusion_models/wan-2.safetensors`` and so on; the VAE
    is ``taesd3``. ComfyUI reads these folders when it starts, so write first.
    """
    for name in names:
        weights = MODELS[name]()
        _write(models / "diffusion_models", name, weights)
        _write(models / "loras", name, lora(weights))
        if name.startswith("sd3"):
            _write(models / "controlnet", name, sd3_controlnet(heads=int(name[-1])))
            for part, made in zip(("encoder", "decoder"), taesd3(), strict=True):
                _write(models / "vae_approx", f"taesd3_{part}", made)


def _write(folder: Path, name: str, weights: Weights) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / f"{name}.safetensors")
