"""AuraFlow: text and image side by side, then behind one another."""

from comfyfleet.parallel.plan import ParallelPlan, Part

BOTH = ("text", "image")

PLAN = ParallelPlan(
    family="aura_flow",
    models=("comfy.ldm.aura.mmdit.MMDiT",),
    parts=(
        Part(path="double_layers.0", enter={"c": ("text",), "x": ("image",)}),
        Part(path="double_layers.*", attends=(BOTH,)),
        Part(path="single_layers.*", attends=(BOTH,)),
        Part(path="final_linear", leave={0: ("image",)}),
    ),
)
