"""HunyuanVideo 1.0 and 1.5, and HunyuanImage 2.1 with its refiner: text before or after image."""

from comfyfleet.parallel.plan import ParallelPlan, Part, Ranges, Residuals, Streams, Tokens


def _plan(both: Streams, only_if: str = "") -> ParallelPlan:
    return ParallelPlan(
        family="hunyuan_video",
        models=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
        only_if=only_if,
        parts=(
            Part(path="double_blocks.0", enter={"img": ("image",), "txt": ("text",)}),
            Part(
                path="double_blocks.*",
                attends=(both,),
                local={
                    "pe": Tokens(dim=2, of=both),
                    "modulation_dims_img": Ranges(of=("image",)),
                    "modulation_dims_txt": Ranges(of=("text",)),
                },
            ),
            # Text and image are cut apart again after the last block, by whole lengths.
            Part(path="double_blocks.-1", leave={0: ("image",), 1: ("text",)}),
            Part(path="single_blocks.0", enter={"x": both}),
            Part(
                path="single_blocks.*",
                attends=(both,),
                local={"pe": Tokens(dim=2, of=both), "modulation_dims": Ranges(of=both)},
            ),
            Part(path="single_blocks.-1", leave={0: both}),
        ),
        control={"input": Residuals(of="image", joined_by="double_blocks")},
    )


#: In ComfyUI 0.3.75 the image comes first.
IMAGE_FIRST = _plan(("image", "text"), only_if="double_blocks.0.flipped_img_txt")
PLAN = _plan(("text", "image"))
