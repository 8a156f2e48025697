"""Stable Diffusion 3 and 3.5; 3.5 medium attends to the image alone once more."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Residuals

BOTH = ("text", "image")

PLAN = ParallelPlan(
    family="sd3",
    models=("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",),
    parts=(
        Part(path="joint_blocks.0", enter={"0": ("text",), "1": ("image",)}),
        Part(path="joint_blocks.*", attends=(BOTH, ("image",))),
        Part(path="final_layer", leave={0: ("image",)}),
    ),
    control={"output": Residuals(of="image")},
)
