"""The embedded demo model: a tiny text-to-image transformer made of ComfyUI's own classes.

It has the parts of any ComfyUI model (MODEL, CLIP, VAE), so stock nodes, samplers and LoRA
patches treat it as one.  `demo/train.py` trains it; `load_demo_model` loads what that wrote.
This module imports ComfyUI: import it only where ComfyUI is on `sys.path`.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

FORMAT = "comfyfleet-demo-1"
MODEL_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "text_encoders."

HIDDEN = 128
TOKENS = 12
VOCABULARY = 32
PAD, START, END = 0, 1, 2
SPECIAL_TOKENS = {"pad": PAD, "start": START, "end": END}
VAE_GROUPS = 4

VAE_CONFIG: dict[str, Any] = {
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 128,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1, 1, 1],
            "num_res_blocks": 0,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }
}

TEXT_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "intermediate_size": 4 * HIDDEN,
    "hidden_act": "gelu",
    "max_position_embeddings": TOKENS,
    "eos_token_id": END,
}


class DemoLatent(comfy.latent_formats.LatentFormat):
    """Latents of 4 channels; the VAE's own weights scale them to mean 0 and variance 1."""

    latent_channels = 4
    scale_factor = 1.0


class WordTokenizer:
    """Splits text into known words, case and commas aside; every other word is left out."""

    def __init__(self, words: list[str], aliases: dict[str, str]) -> None:
        first = len(SPECIAL_TOKENS)
        self.ids = {word: first + i for i, word in enumerate(words)}
        self.ids.update({alias: self.ids[word] for alias, word in aliases.items()})

    @classmethod
    def from_pretrained(
        cls, _path: str, words: list[str], aliases: dict[str, str]
    ) -> WordTokenizer:
        """How ComfyUI's SDTokenizer makes its tokenizer; nothing is read from the path."""
        return cls(words, aliases)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The ids of the known words, between a start and an end token."""
        found = [self.ids[word] for word in re.findall("[a-z]+", text.lower()) if word in self.ids]
        return {"input_ids": [START, *found, END]}

    def get_vocab(self) -> dict[str, int]:
        """Token ids by word, the special tokens in angle brackets."""
        return {**{f"<{name}>": i for name, i in SPECIAL_TOKENS.items()}, **self.ids}


class DemoSDTokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's tokenizer (weights in parentheses, chunks) around `WordTokenizer`."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        data = tokenizer_data or {}
        super().__init__(
            tokenizer_path="demo",
            max_length=TOKENS,
            pad_with_end=False,
            pad_token=PAD,
            embedding_directory=embedding_directory,
            embedding_size=HIDDEN,
            embedding_key="clip_demo",
            tokenizer_class=WordTokenizer,
            tokenizer_data=data,
            tokenizer_args={"words": data["demo_words"], "aliases": data["demo_aliases"]},
        )


class DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """What CLIP.tokenize calls; its answer is {"demo": [[(token, weight) x 12], ...]}."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            clip_name="demo",
            tokenizer=DemoSDTokenizer,
        )


class DemoTextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with the demo's few words instead of CLIP's 49408."""

    def __init__(
        self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any
    ) -> None:
        super().__init__(config_dict, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(VOCABULARY, HIDDEN, dtype=dtype, device=device)
        )


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """A one-layer CLIP text model: context (n, 12, 128) and pooled vector (n, 128)."""

    def __init__(
        self,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=TOKENS,
            textmodel_json_config=dict(TEXT_CONFIG),
            model_class=DemoTextModel,
            special_tokens=SPECIAL_TOKENS,
            model_options=model_options or {},
        )


class DemoClip(comfy.sd1_clip.SD1ClipModel):
    """What comfy.sd.CLIP wraps: the encoder under the name that the tokenizer gives."""

    def __init__(
        self,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            clip_name="demo",
            clip_model=DemoTextEncoder,
        )


class DemoConfig(comfy.supported_models.SD3):
    """A small Stable Diffusion 3: 5 joint blocks, 128 wide, flow matching without shift."""

    unet_config: ClassVar[dict[str, Any]] = {
        "in_channels": 4,
        "patch_size": 2,
        "input_size": None,
        "depth": HIDDEN // 64,
        "num_blocks": 5,
        "adm_in_channels": HIDDEN,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": HIDDEN, "out_features": HIDDEN},
        },
        "qk_norm": "rms",
        "pos_embed_scaling_factor": None,
    }
    sampling_settings: ClassVar[dict[str, float]] = {"shift": 1.0}
    latent_format = DemoLatent
    memory_usage_factor = 0.1
    vae_key_prefix: ClassVar[list[str]] = [VAE_PREFIX]
    text_encoder_key_prefix: ClassVar[list[str]] = [CLIP_PREFIX]
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]

    def clip_target(self, state_dict: Any = None) -> comfy.supported_models_base.ClipTarget:
        """The tokenizer and text model classes that comfy.sd.CLIP builds."""
        return comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoClip)


def demo_config() -> DemoConfig:
    """A fresh model config (ComfyUI's configs hold the dtype that one model runs in)."""
    return DemoConfig(DemoConfig.unet_config)


def share_norm_groups(vae: torch.nn.Module) -> None:
    """Let every GroupNorm of the VAE use `VAE_GROUPS` groups.

    ComfyUI's autoencoder always has 32; with 32 channels that would norm each channel by
    itself, which wipes out the brightness of flat pictures.
    """
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = VAE_GROUPS


def load_demo_model(
    weights: Path,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE from the file that `demo/train.py` wrote.

    Raises ValueError if the file is not such a file, or lacks a weight.
    """
    state, metadata = comfy.utils.load_torch_file(str(weights), return_metadata=True)
    if (metadata or {}).get("format") != FORMAT:
        raise ValueError(
            f"{weights} is not a demo model of format {FORMAT!r}; make one with demo/train.py"
        )
    parts = {prefix: _part(state, prefix) for prefix in (MODEL_PREFIX, CLIP_PREFIX, VAE_PREFIX)}
    config = demo_config()
    model = _load_model(config, parts[MODEL_PREFIX])
    clip = _load_clip(config, parts[CLIP_PREFIX], metadata)
    return model, clip, _load_vae(parts[VAE_PREFIX])


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        raise ValueError(f"the demo weights hold no {prefix}* tensors; make them anew")
    return part


def _load_model(
    config: DemoConfig, state: dict[str, torch.Tensor]
) -> comfy.model_patcher.ModelPatcher:
    management = comfy.model_management
    load_device = management.get_torch_device()
    parameters = sum(value.numel() for value in state.values())
    dtype = management.unet_dtype(
        model_params=parameters,
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=torch.float16,
    )
    cast = management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    first_device = management.unet_inital_load_device(parameters, dtype)
    model = config.get_model({}, "", device=first_device)
    _check_keys(state, model.diffusion_model)
    model.diffusion_model.load_state_dict(state)
    return _patcher_class()(
        model, load_device=load_device, offload_device=management.unet_offload_device()
    )


def _patcher_class() -> type[comfy.model_patcher.ModelPatcher]:
    """The patcher that this ComfyUI's own loaders use (newer ones choose it at start-up)."""
    plain = comfy.model_patcher.ModelPatcher
    found: type[comfy.model_patcher.ModelPatcher] = getattr(
        comfy.model_patcher, "CoreModelPatcher", plain
    )
    return found


def _load_clip(
    config: DemoConfig, state: dict[str, torch.Tensor], metadata: dict[str, str]
) -> comfy.sd.CLIP:
    options: dict[str, Any] = {
        "tokenizer_data": {
            "demo_words": json.loads(metadata["words"]),
            "demo_aliases": json.loads(metadata["aliases"]),
        },
        "parameters": sum(value.numel() for value in state.values()),
    }
    if "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        options["state_dict"] = state
        clip = comfy.sd.CLIP(config.clip_target(), **options)
    else:
        clip = comfy.sd.CLIP(config.clip_target(), **options)
        clip.load_sd(state, full_model=True)
    _check_keys(state, clip.cond_stage_model)
    return clip


def _load_vae(state: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    vae = comfy.sd.VAE(sd=state, config=VAE_CONFIG)
    _check_keys(state, vae.first_stage_model)
    share_norm_groups(vae.first_stage_model)
    return vae


def _check_keys(state: dict[str, torch.Tensor], module: torch.nn.Module) -> None:
    wanted = {key for key in module.state_dict() if not key.endswith("logit_scale")}
    missing = sorted(wanted - set(state))
    if missing:
        raise ValueError(f"the demo weights lack {missing[:3]}; make them anew with demo/train.py")
