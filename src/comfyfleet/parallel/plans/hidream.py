"""HiDream I1 and E1: each block gets text of its own, behind the image and the text of all."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Tokens

IMAGE, TEXT = ("image",), ("text",)
BOTH = IMAGE + TEXT
ROPE = {"rope": Tokens(dim=1, of=BOTH)}

PLAN = ParallelPlan(
    family="hidream",
    models=("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",),
    parts=(
        Part(path="double_stream_blocks.0", enter={"image_tokens": IMAGE}),
        Part(
            path="double_stream_blocks.*",
            enter={"text_tokens": TEXT},
            local=ROPE,
            attends=(BOTH,),
            leave={1: TEXT},
        ),
        Part(
            path="single_stream_blocks.*",
            enter={"image_tokens": BOTH},
            kept=IMAGE,
            local=ROPE,
            attends=(BOTH,),
            leave={0: BOTH},
        ),
        Part(path="final_layer", leave={0: IMAGE}),
    ),
    refused_models={
        "comfy.ldm.hidream_o1.model.HiDreamO1Transformer": "it keeps its text for the next steps.",
    },
)
