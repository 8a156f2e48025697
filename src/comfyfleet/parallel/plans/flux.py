"""Flux dev, schnell, Kontext (reference latents behind the image) and fill."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Residuals, Tokens

BOTH = ("text", "image")

PLAN = ParallelPlan(
    family="flux",
    models=("comfy.ldm.flux.model.Flux",),
    parts=(
        Part(path="double_blocks.0", enter={"img": ("image",), "txt": ("text",)}),
        Part(path="double_blocks.*", attends=(BOTH,), local={"pe": Tokens(dim=2, of=BOTH)}),
        Part(path="single_blocks.*", attends=(BOTH,), local={"pe": Tokens(dim=2, of=BOTH)}),
        Part(path="final_layer", leave={0: ("image",)}),
    ),
    control={"input": Residuals(of="image"), "output": Residuals(of="image")},
)
