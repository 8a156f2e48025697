"""Parallel Model in a real ComfyUI with two workers: its latents are those of one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import prompts
from tests.parallel_bed.bed import Bed, tokens_in
from tests.parallel_bed.checkpoints import MODELS
from tests.parallel_bed.prompts import PARALLEL, Prompt, dual_guided, sampling

pytestmark = pytest.mark.cluster

FAMILIES = ["wan", "sd3", "hunyuan"]
#: As many tokens as no number of ranks divides.
ODD = {"size": (112, 80), "frames": 3}


@pytest.mark.parametrize("model", [name for name in MODELS if name != "sd35-3"])
@pytest.mark.parametrize(
    ("inputs", "options", "way"),
    [
        ({}, {"cfg": 3.0}, "4 as ulysses 3"),
        ({"ulysses": 2}, {"seed": 2}, "4 as ulysses 2"),
        ({"ulysses": 1, "ring": 3}, {"batch": 2, **ODD}, "4 as ring 3"),
        ({"ring": 2}, {"cfg": 3.0, "tokens": (6, 6)}, "4 as ring 2"),
        ({"weights": "1, 0.5, 2"}, {"batch": 2, **ODD}, "4 as ulysses 3"),
    ],
)
def test_a_split_sequence_gives_the_same(
    bed: Bed, model: str, inputs: dict[str, Any], options: dict[str, Any], way: str
) -> None:
    """With heads that two ranks share evenly, and with 3, which they do not."""
    family, heads = model.split("-")
    parallel = {"strategy": "sequence", **inputs}
    bed.check(sampling(family, heads=int(heads), parallel=parallel, **options), way)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("inputs", "options", "way"),
    [
        ({"strategy": "cfg"}, {"cfg": 3.0}, "4 as cfg 2"),
        ({"strategy": "cfg"}, {"cfg": 3.0, "tokens": (6, 6)}, "4 as cfg 2"),
        ({"strategy": "cfg", "weights": "1, 4, 1"}, {"cfg": 3.0, "batch": 2}, "4 as cfg 2"),
        ({"strategy": "cfg + sequence"}, {"cfg": 3.0}, "4 as ulysses 3"),
        ({"strategy": "cfg + sequence", "devices": "cpu-1"}, {"cfg": 3.0}, "4 as cfg 2"),
        ({"strategy": "batch"}, {"batch": 2, "cfg": 3.0, "tokens": (6, 6)}, "4 as batch 2"),
        ({"strategy": "batch"}, {"batch": 3, "cfg": 3.0}, "4 as batch 3"),
        ({"strategy": "batch", "weights": "3, 1, 1"}, {"batch": 5}, "4 as batch 3"),
        ({"strategy": "batch", "devices": "cpu-0"}, {"batch": 3}, "4 as batch 2"),
    ],
)
def test_split_conditionings_and_batches_give_the_same(
    bed: Bed, family: str, inputs: dict[str, Any], options: dict[str, Any], way: str
) -> None:
    bed.check(sampling(family, parallel=inputs, **options), way)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_auto_gives_the_same_whatever_it_chooses(bed: Bed, family: str, cfg: float) -> None:
    found = bed.run(sampling(family, cfg=cfg, steps=8, parallel={"strategy": "auto"}))
    (sampled,) = found.samplings
    assert "ulysses 3" in sampled or "cfg" in sampled
    assert not found.warnings and found.error <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("strategy", "way"), [("sequence", "ulysses 3"), ("cfg", "cfg 2")])
def test_custom_samplers_give_the_same(bed: Bed, family: str, strategy: str, way: str) -> None:
    options = {"cfg": 3.0, "custom_advanced": True, "sampler": "dpmpp_2m"}
    bed.check(sampling(family, parallel={"strategy": strategy}, **options), f"4 as {way}")


@pytest.mark.parametrize(("sampler", "calls"), [("euler_ancestral", 4), ("heun", 7), ("uni_pc", 4)])
def test_samplers_give_the_same(bed: Bed, sampler: str, calls: int) -> None:
    """Some evaluate the model twice in a step."""
    prompt = sampling("wan", sampler=sampler, cfg=3.0, parallel={"strategy": "sequence"})
    bed.check(prompt, f"{calls} as ulysses 3")


def test_three_conditionings_are_split_over_three_devices(bed: Bed) -> None:
    prompt = sampling("wan", custom_advanced=True, cfg=3.0, parallel={"strategy": "cfg"})
    bed.check(dual_guided(prompt), "4 as cfg 3")


@pytest.mark.parametrize(("strategy", "way"), [("sequence", "ulysses 3"), ("cfg", "cfg 2")])
def test_regions_of_a_picture_give_the_same(bed: Bed, strategy: str, way: str) -> None:
    """Two positive prompts, one of them for a part of the picture: three forwards in a step."""
    prompt = sampling("sd3", cfg=3.0, parallel={"strategy": strategy})
    other = {**prompt["positive"]["inputs"], "seed": 150, "tokens": 9}
    area = {"width": 0.5, "height": 0.6, "x": 0.25, "y": 0.0, "strength": 1.0}
    both = {"conditioning_1": ["positive", 0], "conditioning_2": ["area", 0]}
    prompt |= {
        "other": {"class_type": "TestConditioning", "inputs": other},
        "area": {
            "class_type": "ConditioningSetAreaPercentage",
            "inputs": {"conditioning": ["other", 0], **area},
        },
        "both": {"class_type": "ConditioningCombine", "inputs": both},
    }
    prompt["sampler"]["inputs"]["positive"] = ["both", 0]
    bed.check(prompt, f"4 as {way}")


def test_padding_of_a_prompt_is_honoured(bed: Bed) -> None:
    bed.check(sampling("hunyuan", masked=3, parallel={"strategy": "sequence"}), "4 as ulysses 3")


def test_two_samplings_of_one_prompt_give_the_same(bed: Bed) -> None:
    """As with a high-resolution pass: the second gang comes right after the first."""
    prompt = sampling("sd3", cfg=3.0, parallel={"strategy": "sequence"})
    again = {**prompt["sampler"]["inputs"], "latent_image": ["larger", 0], "denoise": 0.6}
    size = {"upscale_method": "nearest-exact", "width": 160, "height": 128, "crop": "disabled"}
    prompt |= {
        "larger": {"class_type": "LatentUpscale", "inputs": {"samples": ["sampler", 0], **size}},
        "sampler_2": {"class_type": "KSampler", "inputs": again},
    }
    prompt["save"]["inputs"]["samples"] = ["sampler_2", 0]
    bed.check(prompt, "4 as ulysses 3", "4 as ulysses 3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("strategy", "cfg"), [("sequence", 1.0), ("cfg", 3.0)])
def test_previews_and_progress_are_those_of_one_device(
    bed: Bed, family: str, strategy: str, cfg: float
) -> None:
    prompt = sampling(family, cfg=cfg, seed=60, steps=3, parallel={"strategy": strategy})
    way = {"sequence": "ulysses 3", "cfg": "cfg 2"}[strategy]
    found = bed.check(prompt, f"3 as {way}").recording
    one = bed.alone(prompt)
    assert found.about("sampler", "save") == one.about("sampler", "save")
    assert found.count("preview") == one.count("preview") == 3
    digests = [{e.digest for e in each.events if e.kind == "preview"} for each in (found, one)]
    assert len(digests[0]) == 3 and digests[0] == digests[1]


@pytest.mark.parametrize(
    ("inputs", "options", "tokens"),
    [
        # 8 x 6 tokens in each of 2 frames
        ({"strategy": "sequence"}, {}, {"": (1, 32), "cpu-0": (1, 32), "cpu-1": (1, 32)}),
        (
            {"strategy": "sequence", "weights": "2, 1, 1"},
            {},
            {"": (1, 48), "cpu-0": (1, 24), "cpu-1": (1, 24)},
        ),
        ({"strategy": "cfg"}, {"cfg": 3.0}, {"": (1, 96), "cpu-0": (1, 96), "cpu-1": None}),
        ({"strategy": "batch"}, {"batch": 4}, {"": (2, 96), "cpu-0": (2, 96), "cpu-1": None}),
    ],
)
def test_workers_really_compute_their_share(
    bed: Bed, inputs: dict[str, Any], options: dict[str, Any], tokens: dict[str, Any]
) -> None:
    """Seen from inside the model's last block, in each process."""
    prompt = sampling("wan", seed=50, before=[bed.trap], parallel=inputs, **options)
    bed.alone(prompt)
    before = {name: len(bed.log_of(name)) for name in tokens}
    with bed.ordered("log", "leader", "cpu-0", "cpu-1"):
        bed.run(prompt)
    for name, each in tokens.items():
        found = tokens_in(bed.log_of(name)[before[name] :], name or "leader")
        assert found == ([each] * 4 if each else []), name


# The demo model.


def demo(strategy: str, **options: Any) -> Prompt:
    prompt = prompts.demo(**options)
    inputs = {"model": ["1", 0], "strategy": strategy}
    prompt["parallel"] = {"class_type": PARALLEL, "inputs": inputs}
    prompt["5"]["inputs"]["model"] = ["parallel", 0]
    return prompt


def picture(bed: Bed, prompt: Prompt) -> np.ndarray:
    (path,) = bed.master.files(bed.master.run(prompt), "7")
    with Image.open(path) as found:
        return np.asarray(found).astype(int)


@pytest.mark.parametrize("strategy", ["sequence", "cfg"])
def test_the_demo_model_draws_the_same(bed: Bed, strategy: str) -> None:
    known = bed.log_of("").count("Last sampling: 12 as")
    one = picture(bed, prompts.demo(seed=5, steps=12))
    many = picture(bed, demo(strategy, seed=5, steps=12))
    assert one.std() > 20 and np.abs(one - many).max() <= 1
    assert bed.log_of("").count("Last sampling: 12 as") == known + 1


def test_a_collector_and_parallel_model_share_the_workers(bed: Bed) -> None:
    """Workers that compute whole pictures follow nobody meanwhile; nobody waits for ever."""
    prompt = prompts.collected(shares=3, seed=40, steps=6)
    plain = prompts.collected(shares=3, seed=40, steps=6)
    inputs = {"model": ["1", 0], "strategy": "sequence"}
    prompt["parallel"] = {"class_type": PARALLEL, "inputs": inputs}
    prompt["5"]["inputs"]["model"] = ["parallel", 0]
    one = [np.asarray(Image.open(p)) for p in bed.master.files(bed.master.run(plain), "7")]
    many = [np.asarray(Image.open(p)) for p in bed.master.files(bed.master.run(prompt), "7")]
    assert len(one) == len(many) == 3
    for first, second in zip(one, many, strict=True):
        assert np.abs(first.astype(int) - second).max() <= 1
