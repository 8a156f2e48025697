"""Wan 2.1 and 2.2: one stream of video tokens, text by cross-attention."""

from comfyfleet.parallel.plan import Frames, ParallelPlan, Part, Tokens

PLAN = ParallelPlan(
    family="wan",
    models=("comfy.ldm.wan.model.WanModel",),
    parts=(
        Part(path="blocks.0", enter={"x": ("video",)}),
        Part(
            path="blocks.*",
            local={
                "freqs": Tokens(dim=1, of=("video",)),
                "e": Frames(dim=1, of="video", ndim=4),
            },
        ),
        Part(path="blocks.*.self_attn", attends=(("video",),)),
        Part(
            path="head",
            local={"e": Frames(dim=1, of="video", ndim=3)},
            leave={0: ("video",)},
        ),
    ),
)
