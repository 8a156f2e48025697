"""The bed for tests of Parallel Model, in one real ComfyUI without a fleet and without the node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.parallel_bed import PACK, checkpoints, prompts
from tests.parallel_bed.events import Event, latent, record
from tests.support import Master, error_of

pytestmark = pytest.mark.comfy

FAMILIES = list(prompts.FAMILIES)
SD3S = ["sd3", "sd35"]
#: What ComfyUI's loaders say of files that do not fit; they go on with random memory.
COMPLAINTS = ["IMPORT FAILED", "unet missing", "unet unexpected", "missing controlnet keys"]
COMPLAINTS += ["Missing VAE keys", "lora key not loaded", "no VAE provided"]


@pytest.fixture(scope="module")
def bed(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    base = tmp_path_factory.mktemp("bed")
    checkpoints.write_models(base / "models")
    running = Master(comfyui, base, workers="0", packs={"parallel_bed": PACK})
    yield running
    running.close()
    log = running.log.read_text()
    for complaint in COMPLAINTS:
        assert complaint not in log, f"{complaint!r} is in {running.log}"


def sampled(bed: Master, family: str, **options: Any) -> torch.Tensor:
    """The latent of a prompt; asserts that it is one that a comparison can use."""
    made = latent(bed, bed.run(prompts.sampling(family, **options)))
    assert made.isfinite().all() and made.shape[1] == checkpoints.CHANNELS
    assert 0.5 < made.std() < 50 and (made.flatten(2).std(2) > 0.1).all()
    return made


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", checkpoints.MODELS)
def test_seeds_and_loras_count_in_each_model(bed: Master, name: str) -> None:
    family, heads = name.split("-")
    plain = sampled(bed, family, heads=int(heads), cfg=3.0)
    assert difference(sampled(bed, family, heads=int(heads), cfg=3.0, seed=2), plain) > 0.1
    assert difference(sampled(bed, family, heads=int(heads), cfg=3.0, lora=1.0), plain) > 0.1


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("family", SD3S)
def test_controlnets_count(bed: Master, family: str, heads: int) -> None:
    plain = sampled(bed, family, heads=heads)
    controlled = sampled(bed, family, heads=heads, controlnet=1.0)
    weaker = sampled(bed, family, heads=heads, controlnet=0.5)
    assert difference(controlled, plain) > 0.1
    assert difference(controlled, weaker) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_batches_and_lengths_are_free(bed: Master, family: str) -> None:
    size = (112, 80) if family == "hunyuan" else (72, 120)  # HunyuanVideo has no odd latents
    made = sampled(bed, family, size=size, frames=3, batch=2, cfg=3.0, tokens=(11, 11))
    shape = [2, checkpoints.CHANNELS, 3, size[1] // 8, size[0] // 8]
    assert list(made.shape) == (shape if prompts.FAMILIES[family].video else shape[:2] + shape[3:])
    assert difference(made[0], made[1]) > 0.1


def test_hunyuan_honours_masks(bed: Master) -> None:
    plain = sampled(bed, "hunyuan")
    assert difference(sampled(bed, "hunyuan", masked=3), plain) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_both_samplers_give_the_same(bed: Master, family: str, cfg: float) -> None:
    simple = sampled(bed, family, cfg=cfg)
    assert simple.equal(sampled(bed, family, cfg=cfg, custom_advanced=True))


@pytest.mark.parametrize("patch", [prompts.SD3_SHIFT, prompts.FLUX_SHIFT])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_sampling_counts(bed: Master, family: str, patch: tuple[str, Any]) -> None:
    plain = sampled(bed, family)
    assert difference(sampled(bed, family, model_sampling=patch), plain) > 0.01


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_easycache_skips_steps(bed: Master, family: str) -> None:
    """Not for SD3: ComfyUI 0.3.75 calls no wrapper of the diffusion model there."""
    plain = sampled(bed, family, steps=10)
    before = bed.log.read_text().count("EasyCache - skipped")
    cached = sampled(bed, family, steps=10, easycache=0.4)
    lines = [line for line in bed.log.read_text().splitlines() if "EasyCache - skipped" in line]
    (line,) = lines[before:]
    assert int(line.split("skipped ")[1].split("/")[0]) > 0
    assert difference(cached, plain) > 1e-3


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc"])
def test_other_samplers_work(bed: Master, sampler: str) -> None:
    sampled(bed, "wan", sampler=sampler, cfg=3.0)


def test_prompts_have_only_what_their_output_needs() -> None:
    plain = prompts.sampling("sd3")
    assert list(plain) == ["model", "positive", "negative", "latent", "sampler", "save"]
    inputs = {"strategy": "auto", "devices": "cpu,cpu"}
    full = prompts.sampling(
        "wan",
        lora=0.5,
        model_sampling=prompts.SD3_SHIFT,
        easycache=0.4,
        parallel=inputs,
        custom_advanced=True,
    )
    chain = ["easycache", "parallel", "model_sampling", "lora", "model"]
    assert full["guider"]["inputs"]["model"] == full["sigmas"]["inputs"]["model"] == [chain[0], 0]
    for node, upstream in pairwise(chain):
        assert full[node]["inputs"]["model"] == [upstream, 0]
    assert full["parallel"]["class_type"] == prompts.PARALLEL
    assert inputs.items() <= full["parallel"]["inputs"].items()
    assert "negative" not in full


def test_events_of_a_run_are_recorded_in_order(bed: Master) -> None:
    recording = record(bed, prompts.sampling("wan", seed=71, steps=3))
    steps = [Event("progress", "sampler", step, 3) for step in (1, 2, 3)]
    shown = Event("preview", "sampler")
    expected = [each for step in steps for each in (shown, step)]
    assert recording.about("sampler") == [Event("executing", "sampler"), *expected]
    assert recording.about("save") == [Event("executing", "save"), Event("executed", "save")]
    assert recording.events[0] == Event("execution_start")
    assert recording.events[-2:] == [Event("execution_success"), Event("executing")]
    assert len({event.digest for event in recording.events if event.kind == "preview"}) == 3
    assert latent(bed, recording.entry).isfinite().all()


def test_events_of_equal_runs_are_equal(bed: Master) -> None:
    one = record(bed, prompts.sampling("sd3", seed=81, controlnet=1.0))
    other = record(bed, prompts.sampling("sd3", seed=82, controlnet=1.0))
    assert one.about("sampler", "save") == other.about("sampler", "save")
    assert one.count("preview") == one.count("progress") == 4
    again = record(bed, prompts.sampling("sd3", seed=82, controlnet=1.0))
    assert Event("execution_cached", "sampler") in again.events and again.count("preview") == 0


def test_a_recorded_run_can_be_interrupted(bed: Master) -> None:
    def interrupt(event: Event) -> None:
        if event == Event("progress", "sampler", 2, 10_000):
            bed.post("/interrupt", {})

    recording = record(bed, prompts.sampling("wan", steps=10_000), on_event=interrupt)
    assert recording.events[-2:] == [
        Event("execution_interrupted", "sampler"),
        Event("executing"),
    ]
    assert 2 <= recording.count("progress") < 10_000


def test_errors_are_recorded(bed: Master) -> None:
    """As ComfyUI has it: masks of HunyuanVideo are for a batch of one."""
    recording = record(bed, prompts.sampling("hunyuan", masked=2, batch=2))
    assert recording.about("sampler")[-1] == Event("execution_error", "sampler")
    assert "expanded size" in error_of(recording.entry)


def loaded(name: str) -> torch.nn.Module:
    """A model in this process, in fp32 on any machine."""
    import comfy.sd

    options = {"dtype": torch.float32}
    weights = checkpoints.MODELS[name]()
    return comfy.sd.load_diffusion_model_state_dict(weights, options).model.diffusion_model


def forward_inputs(name: str) -> checkpoints.Weights:
    kind = prompts.FAMILIES[name.split("-")[0]]
    make = checkpoints.Random(9)
    make.normal("x", 1, checkpoints.CHANNELS, *([2] if kind.video else []), 8, 8)
    make.normal("context", 1, 5, kind.text)
    if kind.pooled:
        make.normal("y", 1, kind.pooled)
    if name.startswith("hunyuan"):
        make.weights["guidance"] = torch.tensor([6.0])
    time = "timestep" if kind.video else "timesteps"
    return {**make.weights, time: torch.tensor([700.0])}


@pytest.mark.parametrize("name", checkpoints.MODELS)
@torch.no_grad()
def test_each_weight_counts(values: ModuleType, name: str) -> None:
    """A weight that no output depends on would hide a mistake in its split."""
    model, inputs = loaded(name), forward_inputs(name)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    assert set(held) == set(checkpoints.MODELS[name]())
    # Nobody reads what the text of the last block of an SD3 asks for.
    held.pop(f"joint_blocks.{int(name[-1]) - 1}.context_block.attn.ln_q.weight", None)
    plain = model(**inputs)
    for key, weight in held.items():
        kept = weight.clone()
        weight.copy_(kept.roll(1, 0) if len(kept) > 1 else kept * 1.5)
        changed = difference(model(**inputs), plain)
        assert changed > 5e-4, key
        weight.copy_(kept)
