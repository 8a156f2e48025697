"""Wan 2.1 and 2.2, SCAIL: one stream of tokens with all references; text by cross-attention."""

from collections.abc import Mapping

from comfyfleet.parallel.plan import Follows, Frames, ParallelPlan, Part, Tokens

VIDEO = ("video",)
LOCAL: Mapping[str, Follows] = {
    "freqs": Tokens(dim=1, of=VIDEO),
    "e": Frames(dim=1, of="video", ndim=4),
}

PLAN = ParallelPlan(
    family="wan",
    models=(
        "comfy.ldm.wan.model.WanModel",
        "comfy.ldm.wan.model.VaceWanModel",
        "comfy.ldm.wan.model.CameraWanModel",
        "comfy.ldm.wan.model.SCAILWanModel",
        "comfy.ldm.wan.model.SCAIL2WanModel",
    ),
    parts=(
        Part(path="blocks.0", enter={"x": VIDEO}),
        Part(path="vace_blocks.0", enter={"c": VIDEO, "x": VIDEO}),
        Part(path="blocks.*", local=LOCAL),
        Part(path="vace_blocks.*", local=LOCAL),
        Part(path="blocks.*.self_attn", attends=(VIDEO,)),
        Part(path="vace_blocks.*.self_attn", attends=(VIDEO,)),
        Part(
            path="head",
            local={"e": Frames(dim=1, of="video", ndim=3)},
            leave={0: VIDEO},
        ),
    ),
    refused_models={
        "comfy.ldm.wan.model.HumoWanModel": "each frame needs the sound of its own moment.",
        "comfy.ldm.wan.model.WanModel_S2V": "each frame needs the sound of its own moment.",
        "comfy.ldm.wan.model_animate.AnimateWanModel": "each frame needs a face of its own.",
        "comfy.ldm.wan.model_wandancer.WanDancerModel": "each frame needs its own bar of music.",
        "comfy.ldm.wan.ar_model.CausalWanModel": "it keeps all earlier frames for the next ones.",
    },
)
