"""Lumina 2 and Z-Image, Omni and pixel space too: text and image are one stream in the layers."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Ranges, Streams, Tokens


def _blocks(path: str, stream: Streams) -> Part:
    return Part(
        path=path,
        attends=(stream,),
        local={"freqs_cis": Tokens(dim=1, of=stream), "timestep_zero_index": Ranges(of=stream)},
    )


LAYERS = (
    Part(path="noise_refiner.0", enter={"x": ("image",)}),
    _blocks("noise_refiner.*", ("image",)),
    Part(path="noise_refiner.-1", leave={0: ("image",)}),
    Part(path="layers.0", enter={"x": ("all",)}),
    _blocks("layers.*", ("all",)),
)

PLAN = ParallelPlan(
    family="lumina",
    models=("comfy.ldm.lumina.model.NextDiT",),
    parts=(
        *LAYERS,
        Part(
            path="final_layer",
            local={"timestep_zero_index": Ranges(of=("all",))},
            leave={0: ("all",)},
        ),
    ),
)

PIXELS = ParallelPlan(
    family="lumina",
    models=("comfy.ldm.lumina.model.NextDiTPixelSpace",),
    parts=(*LAYERS, Part(path="layers.-1", leave={0: ("all",)})),
)
