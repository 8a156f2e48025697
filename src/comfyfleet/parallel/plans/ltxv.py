"""LTX-Video: one stream of tokens, guides among them. LTX-2: a second one of sound beside it."""

from comfyfleet.parallel.plan import Frames, ParallelPlan, Part, Tokens

VIDEO, AUDIO = ("video",), ("audio",)
REFUSES = {"self_attention_mask": "guides with a weight of their own need all tokens at once."}
PLACES = Tokens(dim=2, of=VIDEO, in_tuple=1)
SOUND_PLACES = Tokens(dim=2, of=AUDIO, in_tuple=1)
TIMES = Frames(dim=1, of="video", ndim=3)
SOUND_TIMES = Tokens(dim=1, of=AUDIO)

PLAN = ParallelPlan(
    family="ltxv",
    models=("comfy.ldm.lightricks.model.LTXVModel",),
    parts=(
        Part(path="transformer_blocks.0", enter={"x": VIDEO}),
        Part(
            path="transformer_blocks.*",
            local={"pe": PLACES, "timestep": Tokens(dim=1, of=VIDEO)},
            refuses=REFUSES,
        ),
        Part(path="transformer_blocks.*.attn1", attends=(VIDEO,)),
        Part(path="transformer_blocks.-1", leave={0: VIDEO}),
    ),
)

WITH_SOUND = ParallelPlan(
    family="ltxav",
    models=("comfy.ldm.lightricks.av_model.LTXAVModel",),
    parts=(
        Part(path="transformer_blocks.0", enter={"x.0": VIDEO, "x.1": AUDIO}),
        Part(
            path="transformer_blocks.*",
            local={
                "v_pe": PLACES,
                "v_cross_pe": PLACES,
                "v_timestep": TIMES,
                "v_cross_scale_shift_timestep": TIMES,
                "v_cross_gate_timestep": TIMES,
                "a_pe": SOUND_PLACES,
                "a_cross_pe": SOUND_PLACES,
                "a_timestep": SOUND_TIMES,
                "a_cross_scale_shift_timestep": SOUND_TIMES,
                "a_cross_gate_timestep": SOUND_TIMES,
            },
            refuses=REFUSES,
        ),
        Part(path="transformer_blocks.*.attn1", attends=(VIDEO,)),
        Part(path="transformer_blocks.*.audio_attn1", attends=(AUDIO,)),
        Part(path="transformer_blocks.*.audio_to_video_attn", attends=(VIDEO,), keys=AUDIO),
        Part(path="transformer_blocks.*.video_to_audio_attn", attends=(AUDIO,), keys=VIDEO),
        Part(path="transformer_blocks.-1", leave={0: VIDEO, 1: AUDIO}),
    ),
)
