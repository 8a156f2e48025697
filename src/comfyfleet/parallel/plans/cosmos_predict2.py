"""Cosmos Predict2 and Anima: frames, rows and columns as one stream; text by cross-attention."""

from comfyfleet.parallel.plan import Frames, ParallelPlan, Part, Tokens

VIDEO = ("video",)
PER_FRAME = {
    "emb_B_T_D": Frames(dim=1, of="video", ndim=3),
    "adaln_lora_B_T_3D": Frames(dim=1, of="video", ndim=3),
}

PLAN = ParallelPlan(
    family="cosmos_predict2",
    models=("comfy.ldm.cosmos.predict2.MiniTrainDIT", "comfy.ldm.anima.model.Anima"),
    parts=(
        Part(path="blocks.0", enter={"x_B_T_H_W_D": VIDEO}, token_dims=3),
        Part(
            path="blocks.*",
            local={"rope_emb_L_1_1_D": Tokens(dim=1, of=VIDEO), **PER_FRAME},
            refuses={"extra_per_block_pos_emb": "every block adds positions to whole frames."},
        ),
        Part(path="blocks.*.self_attn", attends=(VIDEO,)),
        Part(path="final_layer", local=PER_FRAME, leave={0: VIDEO}),
    ),
)
