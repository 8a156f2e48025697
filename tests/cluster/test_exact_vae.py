"""A VAE by rows in a real ComfyUI with two workers: its pictures are those of one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel_bed.bed import Bed
from tests.parallel_bed.events import Recording, latent, record
from tests.parallel_bed.prompts import sampling

pytestmark = pytest.mark.cluster

BOUND = 1e-5
#: As many rows as no number of ranks divides.
SIZES = {"decode": "2,13,9", "encode": "2,107,72"}
THREE = "rows on cpu, cpu, cpu"


def prompt(bed: Bed, method: str, *, exact: bool, seed: int, **vae: Any) -> dict[str, Any]:
    work = {"vae": ["vae", 0], "method": method, "exact": exact, "seed": seed}
    work["size"] = SIZES[method]
    return {
        "vae": {
            "class_type": "TestVAE",
            "inputs": {"order": str(bed.order), "video": False, **vae},
        },
        "work": {"class_type": "TestVAEWork", "inputs": work},
        "save": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["work", 0], "filename_prefix": "vae"},
        },
    }


_seeds = iter(range(1000))  # so that ComfyUI's cache knows none


def run(bed: Bed, method: str, **options: Any) -> tuple[torch.Tensor, Recording]:
    recording = record(bed.master, prompt(bed, method, **options))
    return latent(bed.master, recording.entry), recording


def check(bed: Bed, method: str, **options: Any) -> list[str]:
    """Run by all, which must be equal to one; what the user was told."""
    options["seed"] = next(_seeds)
    expected, _ = run(bed, method, exact=False, **options)
    found, recording = run(bed, method, exact=True, **options)
    assert found.shape == expected.shape and expected.std() > 0.1
    error = float((found - expected).norm() / expected.norm())
    print(f"{method}: {error:.1e}")
    assert error <= BOUND, recording.texts
    return recording.texts


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_three_devices_compute_what_one_does(bed: Bed, method: str) -> None:
    assert check(bed, method) == [f"Exact {method}: {THREE}."]


def test_a_vae_that_is_not_known_is_computed_alone(bed: Bed) -> None:
    (told,) = check(bed, "decode", video=True)
    assert told.startswith("One device computes: ") and "other (Conv3d)" in told


@pytest.mark.parametrize(("what", "why"), [("error", "the trap"), ("die", "its process ended")])
def test_a_lost_follower_costs_only_time(bed: Bed, what: str, why: str) -> None:
    with bed.ordered(what, "cpu-0", after=2):
        (told,) = check(bed, "decode")
    assert told.startswith("One device computes: cpu-0 was lost: ") and why in told
    assert told.endswith("It is repeated.")
    bed.mend()
    assert check(bed, "decode") == [f"Exact decode: {THREE}."]


def test_a_worker_keeps_the_model_that_it_samples_with(bed: Bed) -> None:
    """A workflow that samples and decodes with all devices loads nothing at its second run."""

    loads = []
    for seed in (2000, 2001):
        sampled = sampling("sd3", seed=seed, parallel={"strategy": "sequence"})
        decoded = prompt(bed, "decode", exact=True, seed=seed)
        decoded["decoded"] = decoded.pop("save")
        recording = record(bed.master, sampled | decoded)
        assert f"Exact decode: {THREE}." in recording.texts
        assert any("ulysses 3" in text for text in recording.texts)
        loads.append(bed.loads())
    assert loads[0] == loads[1]
