"""Flux dev, schnell, Kontext (reference latents behind the image), fill; Flux 2 and Klein; Ovis."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Ranges, Residuals, Tokens

BOTH = ("text", "image")
IMAGE = Ranges(of=("image",))

PLAN = ParallelPlan(
    family="flux",
    models=("comfy.ldm.flux.model.Flux",),
    parts=(
        Part(path="double_blocks.0", enter={"img": ("image",), "txt": ("text",)}),
        Part(
            path="double_blocks.*",
            attends=(BOTH,),
            local={"pe": Tokens(dim=2, of=BOTH), "modulation_dims_img": IMAGE},
        ),
        Part(
            path="single_blocks.*",
            attends=(BOTH,),
            local={
                "pe": Tokens(dim=2, of=BOTH),
                "modulation_dims": Ranges(of=BOTH, behind="text"),
            },
        ),
        Part(path="final_layer", local={"modulation_dims": IMAGE}, leave={0: ("image",)}),
    ),
    control={"input": Residuals(of="image"), "output": Residuals(of="image")},
)
