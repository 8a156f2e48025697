"""Prompts that sample with the tiny models, as clients send them.

Node ids say what a node is: ``model`` (the loader), ``lora``, ``model_sampling``, ``before_0``,
``parallel``, ``after_0``, ``easycache``, ``positive``, ``negative``, ``latent``, ``sampler``,
``save``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.parallel_bed import checkpoints

Prompt = dict[str, Any]
Link = list[Any]
#: A node that patches a model: its class, and its inputs but ``model``.
Patch = tuple[str, Mapping[str, Any]]

PARALLEL = "FleetParallelModel"
#: For ``model_sampling``: a stock node and its inputs.
SD3_SHIFT = ("ModelSamplingSD3", {"shift": 5.0})
FLUX_SHIFT = (
    "ModelSamplingFlux",
    {"max_shift": 1.15, "base_shift": 0.5, "width": 256, "height": 256},
)


@dataclass(frozen=True)
class Family:
    """What a family's prompts need; ``heads`` is the default of the two models."""

    heads: int
    text: int
    pooled: int = 0
    video: bool = True


FAMILIES = {
    "wan": Family(2, checkpoints.WAN_TEXT),
    "sd3": Family(4, checkpoints.SD3_TEXT, checkpoints.SD3_POOLED, video=False),
    "sd35": Family(4, checkpoints.SD3_TEXT, checkpoints.SD3_POOLED, video=False),
    "hunyuan": Family(2, checkpoints.HUNYUAN_TEXT, checkpoints.HUNYUAN_POOLED),
}


def sampling(
    family: str,
    *,
    heads: int | None = None,
    steps: int = 4,
    cfg: float = 1.0,
    seed: int = 1,
    sampler: str = "euler",
    scheduler: str = "simple",
    size: tuple[int, int] = (128, 96),
    frames: int = 2,
    batch: int = 1,
    tokens: tuple[int, int] = (7, 5),
    masked: int | None = None,
    lora: float | None = None,
    controlnet: float | None = None,
    model_sampling: Patch | None = None,
    easycache: float | None = None,
    before: Sequence[Patch] = (),
    parallel: Mapping[str, Any] | None = None,
    after: Sequence[Patch] = (),
    custom_advanced: bool = False,
) -> Prompt:
    """A prompt from the stock loader to a saved latent.

    ``size`` is in pixels, 8 to a latent's element; ``frames`` are latent frames of a video;
    ``tokens`` are the text's lengths, positive and negative; of both, the last ``masked`` are
    padding. ``lora`` and ``controlnet`` are strengths, ``easycache`` is its threshold,
    ``parallel`` the inputs of Parallel Model but ``model``; ``before`` and ``after`` are right
    there, with or without it. With ``custom_advanced``, cfg 1 means a BasicGuider, without any
    negative.
    """
    kind = FAMILIES[family]
    file = f"{family}-{heads or kind.heads}.safetensors"
    prompt: Prompt = {}
    model = _model(prompt, file, lora, model_sampling)
    for i, (class_type, inputs) in enumerate(before):
        model = _add(prompt, f"before_{i}", class_type, model=model, **inputs)
    if parallel is not None:
        model = _add(prompt, "parallel", PARALLEL, model=model, **parallel)
    for i, (class_type, inputs) in enumerate(after):
        model = _add(prompt, f"after_{i}", class_type, model=model, **inputs)
    if easycache is not None:
        class_type, inputs = easy_cache(easycache)
        model = _add(prompt, "easycache", class_type, model=model, **inputs)
    conds = _conditioning(prompt, kind, tokens, masked)
    if controlnet is not None:
        conds = _controlnet(prompt, file, conds, controlnet, size)
    _latent(prompt, kind, size, frames, batch)
    options = {"steps": steps, "cfg": cfg, "seed": seed, "scheduler": scheduler}
    sample = _custom_sampler if custom_advanced else _ksampler
    sample(prompt, model, conds, sampler, options)
    _add(prompt, "save", "SaveLatent", samples=["sampler", 0], filename_prefix="bed")
    used = _upstream(prompt, "save")
    return {name: node for name, node in prompt.items() if name in used}


def easy_cache(threshold: float) -> Patch:
    """ComfyUI's EasyCache, for most of the steps."""
    span = {"start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    return "EasyCache", {"reuse_threshold": threshold, **span}


def lora_of(name: str, strength: float) -> Patch:
    """The LoRA of a model, loaded by the stock node."""
    return "LoraLoaderModelOnly", {"lora_name": f"{name}.safetensors", "strength_model": strength}


def alone(prompt: Mapping[str, Any]) -> Prompt:
    """The prompt without its Parallel Model nodes."""
    copy: Prompt = json.loads(json.dumps(prompt))
    removed = {name: copy.pop(name) for name, node in prompt.items() if _is_parallel(node)}
    for node in copy.values():
        for key, value in node["inputs"].items():
            while isinstance(value, list) and value[0] in removed:
                value = removed[value[0]]["inputs"]["model"]
                node["inputs"][key] = value
    return copy


def dual_guided(prompt: Prompt) -> Prompt:
    """A prompt for a custom sampler, with a guider of two positive prompts and a negative one."""
    other = {**prompt["positive"]["inputs"], "seed": 150, "tokens": 9}
    guider = {
        "model": prompt["guider"]["inputs"]["model"],
        "cond1": ["positive", 0],
        "cond2": ["other", 0],
        "negative": ["negative", 0],
        "cfg_conds": 3.0,
        "cfg_cond2_negative": 2.0,
        "style": "regular",
    }
    return {
        **prompt,
        "other": {"class_type": "TestConditioning", "inputs": other},
        "guider": {"class_type": "DualCFGGuider", "inputs": guider},
    }


def _is_parallel(node: Mapping[str, Any]) -> bool:
    return node["class_type"] == PARALLEL


def _add(prompt: Prompt, name: str, class_type: str, **inputs: Any) -> Link:
    prompt[name] = {"class_type": class_type, "inputs": inputs}
    return [name, 0]


def _model(prompt: Prompt, file: str, lora: float | None, model_sampling: Patch | None) -> Link:
    model = _add(prompt, "model", "UNETLoader", unet_name=file, weight_dtype="default")
    if lora is not None:
        class_type, inputs = lora_of(file.removesuffix(".safetensors"), lora)
        model = _add(prompt, "lora", class_type, model=model, **inputs)
    if model_sampling is not None:
        class_type, inputs = model_sampling
        model = _add(prompt, "model_sampling", class_type, model=model, **inputs)
    return model


def _conditioning(
    prompt: Prompt, kind: Family, tokens: tuple[int, int], masked: int | None
) -> tuple[Link, Link]:
    common = {"dim": kind.text, "pooled": kind.pooled, "masked": -1 if masked is None else masked}
    positive = {"seed": 100, "tokens": tokens[0], **common}
    negative = {"seed": 200, "tokens": tokens[1], **common}
    return (
        _add(prompt, "positive", "TestConditioning", **positive),
        _add(prompt, "negative", "TestConditioning", **negative),
    )


def _controlnet(
    prompt: Prompt, file: str, conds: tuple[Link, Link], strength: float, size: tuple[int, int]
) -> tuple[Link, Link]:
    inputs = {
        "positive": conds[0],
        "negative": conds[1],
        "control_net": _add(prompt, "controlnet", "ControlNetLoader", control_net_name=file),
        "image": _add(prompt, "hint", "TestPicture", seed=300, width=size[0], height=size[1]),
        "vae": _add(prompt, "vae", "VAELoader", vae_name="taesd3"),
    }
    limits = {"strength": strength, "start_percent": 0.0, "end_percent": 1.0}
    _add(prompt, "control", "ControlNetApplyAdvanced", **inputs, **limits)
    return ["control", 0], ["control", 1]


def _latent(prompt: Prompt, kind: Family, size: tuple[int, int], frames: int, batch: int) -> None:
    inputs = {"width": size[0], "height": size[1], "batch_size": batch}
    if kind.video:
        inputs["length"] = 4 * frames - 3
    node = "EmptyHunyuanLatentVideo" if kind.video else "EmptySD3LatentImage"
    _add(prompt, "latent", node, **inputs)


def _ksampler(
    prompt: Prompt, model: Link, conds: tuple[Link, Link], sampler: str, options: dict[str, Any]
) -> None:
    links = {"positive": conds[0], "negative": conds[1], "latent_image": ["latent", 0]}
    inputs = {"model": model, "sampler_name": sampler, "denoise": 1.0, **links, **options}
    _add(prompt, "sampler", "KSampler", **inputs)


def _custom_sampler(
    prompt: Prompt, model: Link, conds: tuple[Link, Link], sampler: str, options: dict[str, Any]
) -> None:
    cfg, seed = options.pop("cfg"), options.pop("seed")
    both = {"positive": conds[0], "negative": conds[1], "cfg": cfg}
    if cfg == 1:
        guider = _add(prompt, "guider", "BasicGuider", model=model, conditioning=conds[0])
    else:
        guider = _add(prompt, "guider", "CFGGuider", model=model, **both)
    inputs = {
        "guider": guider,
        "noise": _add(prompt, "noise", "RandomNoise", noise_seed=seed),
        "sampler": _add(prompt, "sampler_name", "KSamplerSelect", sampler_name=sampler),
        "sigmas": _add(prompt, "sigmas", "BasicScheduler", model=model, denoise=1.0, **options),
        "latent_image": ["latent", 0],
    }
    _add(prompt, "sampler", "SamplerCustomAdvanced", **inputs)


def _upstream(prompt: Prompt, name: str) -> set[str]:
    """A node and all that it needs."""
    links = [value for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return {name}.union(*(_upstream(prompt, link[0]) for link in links))
