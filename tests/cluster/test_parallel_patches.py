"""Parallel Model among other nodes that change a model, and what it says of those it cannot split.

Whatever is there, the latent is the one that one device gives.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.parallel_bed.bed import TOLERANCE, Bed
from tests.parallel_bed.events import latent, record
from tests.parallel_bed.prompts import (
    FLUX_SHIFT,
    PARALLEL,
    SD3_SHIFT,
    Patch,
    Prompt,
    alone,
    easy_cache,
    lora_of,
    sampling,
)
from tests.support import error_of

pytestmark = pytest.mark.cluster

FAMILIES = ["wan", "sd3", "hunyuan"]
SEQUENCE = {"strategy": "sequence"}
BY_THREE = "4 as ulysses 3"
BY_CFG = "4 as cfg 2"
ALONE = "4 as one device"
LAST = "put Parallel Model last"
#: Split conditionings are evaluated one by one, the negative one first, and not as one batch.
SEES_TWO_STEPS = pytest.mark.xfail(strict=True, reason="EasyCache sees other batches with cfg")


def patch(kind: str) -> Patch:
    return "TestPatch", {"kind": kind}


# LoRA, ControlNet, ModelSampling.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_lora_gives_its_picture_and_loads_nothing(bed: Bed, family: str) -> None:
    options = {"cfg": 3.0, "parallel": SEQUENCE}
    bed.check(sampling(family, lora=0.5, **options), BY_THREE)
    before = bed.loads()
    for strength in (1.0, 0.25):
        bed.check(sampling(family, lora=strength, **options), BY_THREE)
    bed.check(sampling(family, **options), BY_THREE)
    bed.check(sampling(family, lora=0.5, tokens=(9, 4), **options), BY_THREE)
    assert bed.loads() == before


@pytest.mark.parametrize(
    ("family", "inputs", "options", "way"),
    [
        ("sd3", SEQUENCE, {}, BY_THREE),
        ("sd35", SEQUENCE, {"cfg": 3.0}, BY_THREE),
        ("sd3", {"strategy": "sequence", "ring": 3}, {"cfg": 3.0}, "4 as ring 3"),
        ("sd35", {"strategy": "cfg"}, {"cfg": 3.0}, BY_CFG),
        ("sd3", {"strategy": "cfg"}, {"cfg": 3.0, "tokens": (6, 6)}, BY_CFG),
        ("sd3", {"strategy": "batch"}, {"cfg": 3.0, "batch": 3, "tokens": (6, 6)}, "4 as batch 3"),
    ],
)
def test_controlnets_give_the_same(
    bed: Bed, family: str, inputs: dict[str, Any], options: dict[str, Any], way: str
) -> None:
    bed.check(sampling(family, controlnet=0.8, parallel=inputs, **options), way)


@pytest.mark.parametrize(
    ("family", "shift"), [("wan", FLUX_SHIFT), ("sd3", SD3_SHIFT), ("hunyuan", SD3_SHIFT)]
)
def test_model_sampling_gives_the_same_on_both_sides(bed: Bed, family: str, shift: Patch) -> None:
    bed.check(sampling(family, model_sampling=shift, parallel=SEQUENCE), BY_THREE)
    bed.check(sampling(family, after=[shift], parallel=SEQUENCE), BY_THREE)


# EasyCache.


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("family", ["wan", "hunyuan"])
@pytest.mark.parametrize(
    ("strategy", "way", "options"),
    [
        ("sequence", "ulysses 3", {}),
        ("sequence", "ulysses 3", {"cfg": 3.0, "tokens": (6, 6)}),
        ("batch", "batch 2", {"batch": 2, "cfg": 3.0}),
        pytest.param("cfg", "cfg 2", {"cfg": 3.0}, marks=SEES_TWO_STEPS),
    ],
)
def test_easycache_skips_the_same_steps(
    bed: Bed, family: str, strategy: str, way: str, options: dict[str, Any], place: str
) -> None:
    patches = {place: [easy_cache(0.4)]}
    prompt = sampling(family, steps=10, parallel={"strategy": strategy}, **patches, **options)
    bed.alone(prompt)
    found = bed.run(prompt)
    skipped = re.findall(r"EasyCache - skipped (\d+)/10", bed.log_of(""))
    assert found.samplings == [f"{10 - int(skipped[-1])} as {way}"] and skipped[-1] != "0"
    assert not found.warnings and found.error <= TOLERANCE, found.error


# Patches.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["function", "guidance"])
def test_patches_around_the_forward_may_be_anywhere(bed: Bed, family: str, kind: str) -> None:
    bed.check(sampling(family, cfg=3.0, before=[patch(kind)], parallel=SEQUENCE), BY_THREE)
    bed.check(sampling(family, cfg=3.0, after=[patch(kind)], parallel={"strategy": "cfg"}), BY_CFG)


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
@pytest.mark.parametrize(("strategy", "way"), [("sequence", BY_THREE), ("cfg", BY_CFG)])
def test_wrappers_of_the_forward_may_be_anywhere(
    bed: Bed, family: str, strategy: str, way: str
) -> None:
    """Called once, by the leader. Not for SD3: ComfyUI 0.3.75 calls no such wrapper there."""
    options = {"cfg": 3.0, "parallel": {"strategy": strategy}}
    bed.check(sampling(family, before=[patch("forward")], **options), way)
    bed.check(sampling(family, after=[patch("forward")], **options), way)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attention_from_before_the_node_is_used_by_all(bed: Bed, family: str) -> None:
    options = {"cfg": 3.0, "before": [patch("attention")]}
    bed.check(sampling(family, parallel=SEQUENCE, **options), BY_THREE)
    bed.check(sampling(family, parallel={"strategy": "cfg"}, **options), BY_CFG)
    ring = {"strategy": "sequence", "ring": 3}
    bed.check_warned(sampling(family, parallel=ring, **options), "log-sum-exp", ALONE)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("family", "strategy"),
    [("wan", "sequence"), ("wan", "cfg"), ("sd3", "sequence"), ("hunyuan", "cfg")],
)
def test_a_replaced_block_is_computed_by_one_device(
    bed: Bed, family: str, strategy: str, place: str
) -> None:
    options = {"cfg": 3.0, "parallel": {"strategy": strategy}, place: [patch("block")]}
    bed.check_warned(sampling(family, **options), "patches the inside of the model", ALONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attention_from_after_the_node_is_computed_by_one_device(bed: Bed, family: str) -> None:
    prompt = sampling(family, cfg=3.0, after=[patch("attention")], parallel=SEQUENCE)
    bed.check_warned(prompt, LAST, ALONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replaced_method_is_computed_by_one_device(bed: Bed, family: str) -> None:
    """As long as it is there: ComfyUI puts the old one back as an attribute of the model."""
    options = {"cfg": 3.0, "parallel": SEQUENCE}
    prompt = sampling(family, before=[patch("method")], **options)
    bed.check_warned(prompt, "replaces the model's own forward", ALONE)
    bed.check_warned(sampling(family, after=[patch("method")], **options), LAST)
    bed.check(sampling(family, **options, seed=33), BY_THREE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_after_the_node_is_computed_by_one_device(bed: Bed, family: str) -> None:
    heads = {"wan": 2, "sd3": 4, "hunyuan": 2}[family]
    after = [lora_of(f"{family}-{heads}", 0.7)]
    bed.check_warned(sampling(family, after=after, parallel=SEQUENCE), LAST)
    bed.check(sampling(family, before=after, parallel=SEQUENCE), BY_THREE)


def test_another_precision_after_the_node_is_computed_by_one_device(bed: Bed) -> None:
    bf16, fp32 = (("ModelComputeDtype", {"dtype": dtype}) for dtype in ("bf16", "fp32"))
    bed.check_warned(sampling("wan", after=[bf16], parallel=SEQUENCE), LAST)
    bed.check(sampling("wan", before=[fp32], parallel=SEQUENCE), BY_THREE)


def test_weights_that_a_conditioning_changes_are_computed_by_one_device(bed: Bed) -> None:
    """A LoRA of the positive prompt only, by ComfyUI's hooks."""
    prompt = sampling("wan", cfg=3.0, parallel={"strategy": "cfg"})
    hook = {"lora_name": "wan-2.safetensors", "strength_model": 0.7}
    hooked = {
        "cond_NEW": ["positive", 0],
        "hooks": ["hook", 0],
        "strength": 1.0,
        "set_cond_area": "default",
    }
    prompt |= {
        "hook": {"class_type": "CreateHookLoraModelOnly", "inputs": hook},
        "hooked": {"class_type": "ConditioningSetProperties", "inputs": hooked},
    }
    prompt["sampler"]["inputs"]["positive"] = ["hooked", 0]
    bed.check_warned(prompt, "hooks")
    bed.check(sampling("wan", cfg=3.0, parallel={"strategy": "cfg"}), BY_CFG)


def test_windows_of_a_long_video_give_the_same(bed: Bed) -> None:
    """ComfyUI's context windows: each step is several, of another shape than the latent."""
    window = {"context_length": 13, "context_overlap": 4, "context_schedule": "standard_static"}
    more = {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid"}
    windows = "WanContextWindowsManual", {**window, **more}
    for place in ("before", "after"):
        prompt = sampling("wan", frames=7, parallel=SEQUENCE, **{place: [windows]})
        bed.check(prompt, "8 as ulysses 3")


# Strategies that cannot be used.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_strategy_that_has_nothing_to_split_says_so(bed: Bed, family: str) -> None:
    by_cfg, by_batch = {"strategy": "cfg"}, {"strategy": "batch"}
    bed.check_warned(sampling(family, parallel=by_cfg), "one conditioning only", ALONE)
    bed.check_warned(sampling(family, cfg=3.0, parallel=by_batch), "one picture only", ALONE)


# Bad input.


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"devices": "cuda-7"}, ["'cuda-7'", "cpu-0, cpu-1", "Give all"]),
        ({"devices": "cpu-0, nobody, cpu-9"}, ["'nobody', 'cpu-9'"]),
        ({"devices": "cpu-0, cpu-0"}, ["twice"]),
        ({"weights": "1, 2"}, ["weights has 2 numbers", "give 3", "cpu-0, cpu-1"]),
        ({"devices": "cpu-1", "weights": "1,1,1"}, ["weights has 3 numbers", "give 2"]),
        ({"weights": "1, many, 2"}, ["'1, many, 2'"]),
        ({"weights": "1, 0, 2"}, ["above 0"]),
        ({"weights": "1, nan, 2"}, ["above 0"]),
        ({"ulysses": 2, "ring": 2}, ["ulysses 2 x ring 2", "needs 4 devices; there are 3"]),
        ({"ulysses": 3, "devices": "cpu-0"}, ["ulysses 3", "needs 3 devices; there are 2"]),
        ({"strategy": "cfg", "ulysses": 2}, ["ulysses is 2", "does not split the sequence"]),
        ({"strategy": "batch", "ring": 3}, ["ring is 3"]),
    ],
)
def test_bad_input_fails_the_prompt_and_names_the_node(
    bed: Bed, inputs: dict[str, Any], words: list[str]
) -> None:
    found = record(bed.master, sampling("wan", parallel={"strategy": "sequence", **inputs}))
    text = error_of(found.entry)
    assert found.about("parallel")[-1].kind == "execution_error"
    for word in ["node parallel (FleetParallelModel):", *words]:
        assert word in text, text


def test_a_node_without_settings_is_auto_on_all_devices(bed: Bed) -> None:
    prompt = sampling("wan", seed=9, parallel={})
    found = bed.run(prompt)
    assert "ulysses 3" in found.samplings[0]


def test_the_report_says_what_is_split_and_then_what_was_measured(bed: Bed) -> None:
    prompt = sampling("wan", parallel=SEQUENCE)
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["parallel", 1]}}
    first = bed.master.run(prompt)["outputs"]["report"]["text"][0]
    assert "Strategy sequence" in first and "'wan'" in first
    assert "this device, cpu-0, cpu-1" in first
    prompt["parallel"]["inputs"]["weights"] = "2, 1, 1"
    second = bed.master.run(prompt)["outputs"]["report"]["text"][0]
    assert "Last sampling: 4 as ulysses 3; devices: cpu, cpu, cpu." in second


# Several nodes.


def two_noises(parallel: dict[str, Any] | None, *, seed: int, cfg: float = 3.0) -> Prompt:
    """Wan 2.2's way: one model for the first two steps, another for the last two."""
    prompt = sampling("wan", cfg=cfg, seed=seed, parallel=parallel)
    low = {"unet_name": "wan-3.safetensors", "weight_dtype": "default"}
    prompt["low"] = {"class_type": "UNETLoader", "inputs": low}
    link = ["low", 0]
    if parallel is not None:
        inputs = {"model": link, **parallel}
        prompt["low_parallel"] = {"class_type": PARALLEL, "inputs": inputs}
        link = ["low_parallel", 0]
    both = dict(prompt["sampler"]["inputs"])
    both["noise_seed"] = both.pop("seed")
    del both["denoise"]
    spans = {
        "sampler": {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2},
        "sampler_2": {"add_noise": "disable", "start_at_step": 2, "end_at_step": 10000},
    }
    spans["sampler"]["return_with_leftover_noise"] = "enable"
    spans["sampler_2"] |= {"return_with_leftover_noise": "disable", "model": link}
    spans["sampler_2"]["latent_image"] = ["sampler", 0]
    for name, span in spans.items():
        prompt[name] = {"class_type": "KSamplerAdvanced", "inputs": {**both, **span}}
    prompt["save"]["inputs"]["samples"] = ["sampler_2", 0]
    return prompt


def test_two_models_share_a_gang_and_are_loaded_once(bed: Bed) -> None:
    bed.check(sampling("sd3", seed=77, parallel=SEQUENCE), BY_THREE)  # all else is forgotten
    before = bed.loads()
    for seed in (1, 2, 3):
        prompt = two_noises(SEQUENCE, seed=seed)
        assert set(alone(prompt)) == set(two_noises(None, seed=seed))
        bed.check(prompt, "2 as ulysses 3", "2 as ulysses 3")
    loaded = {name: count - before[name] for name, count in bed.loads().items()}
    assert loaded == {"cpu-0": 2, "cpu-1": 2}


def test_nodes_with_different_devices_in_one_prompt(bed: Bed) -> None:
    prompt = two_noises({"strategy": "cfg", "devices": "cpu-0"}, seed=4)
    prompt["low_parallel"]["inputs"]["devices"] = "cpu-1"
    bed.check(prompt, "2 as cfg 2", "2 as cfg 2")


def test_two_nodes_in_a_row_are_one_or_say_so(bed: Bed) -> None:
    """Nobody needs it; it must not hang or change the picture."""
    after = [(PARALLEL, {"strategy": "cfg"})]
    found = bed.run(sampling("wan", cfg=3.0, parallel=SEQUENCE, after=after))
    assert "node before this one is not used" in found.warnings
    assert found.error <= TOLERANCE and found.samplings == [BY_CFG]


def test_a_prompt_without_the_node_is_left_alone(bed: Bed) -> None:
    """After all the others: nothing of ours stays on the model."""
    prompt = sampling("sd3", seed=12, cfg=3.0)
    told = bed.log_of("").count("Parallel Model:")
    first = latent(bed.master, record(bed.master, prompt).entry)
    bed.check(sampling("sd3", seed=12, cfg=3.0, parallel=SEQUENCE), BY_THREE)
    bed.check(sampling("sd3", seed=13, cfg=3.0, parallel=SEQUENCE), BY_THREE)
    prompt["save"]["inputs"]["filename_prefix"] = "again"
    prompt["sampler"]["inputs"]["seed"] = 14
    record(bed.master, prompt)
    prompt["sampler"]["inputs"]["seed"] = 12
    assert latent(bed.master, record(bed.master, prompt).entry).equal(first)
    assert bed.log_of("").count("Parallel Model:") == told + 2
