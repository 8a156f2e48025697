"""Qwen-Image, Edit (reference latents behind the image) and Layered."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Position, Residuals, Tokens

BOTH = ("text", "image")

PLAN = ParallelPlan(
    family="qwen_image",
    models=("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",),
    parts=(
        Part(
            path="transformer_blocks.0",
            enter={"hidden_states": ("image",), "encoder_hidden_states": ("text",)},
        ),
        Part(
            path="transformer_blocks.*",
            attends=(BOTH,),
            own_mask=True,
            local={
                "encoder_hidden_states_mask": Tokens(dim=1, of=("text",)),
                "image_rotary_emb": Tokens(dim=2, of=BOTH),
                "timestep_zero_index": Position(of="image"),
            },
        ),
        Part(path="proj_out", leave={0: ("image",)}),
    ),
    control={"input": Residuals(of="image")},
)
