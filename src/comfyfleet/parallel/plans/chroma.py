"""Chroma, and Chroma Radiance, whose pixels are made from all tokens on every rank."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Residuals, Tokens

BOTH = ("text", "image")

BLOCKS = (
    Part(path="double_blocks.0", enter={"img": ("image",), "txt": ("text",)}),
    Part(path="double_blocks.*", attends=(BOTH,), local={"pe": Tokens(dim=2, of=BOTH)}),
    Part(path="single_blocks.*", attends=(BOTH,), local={"pe": Tokens(dim=2, of=BOTH)}),
)

PLAN = ParallelPlan(
    family="chroma",
    models=("comfy.ldm.chroma.model.Chroma",),
    parts=(*BLOCKS, Part(path="final_layer", leave={0: ("image",)})),
    control={"input": Residuals(of="image"), "output": Residuals(of="image")},
)

RADIANCE = ParallelPlan(
    family="chroma radiance",
    models=("comfy.ldm.chroma_radiance.model.ChromaRadiance",),
    parts=(
        *BLOCKS,
        # What follows cuts the image out, behind the text that this rank has seen.
        Part(path="single_blocks.-1", leave={0: BOTH}, kept=("text",)),
    ),
    control={
        "input": Residuals(of="image"),
        "output": Residuals(of="image", joined_by="single_blocks"),
    },
)
