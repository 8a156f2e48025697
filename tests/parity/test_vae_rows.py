"""VAEs by rows: N ranks decode and encode what one does, with ComfyUI's own classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from comfyfleet.errors import CannotSplit  # noqa: E402
from comfyfleet.parallel.call import Call  # noqa: E402
from comfyfleet.parallel.comm import World  # noqa: E402
from comfyfleet.parallel.dims import ParallelDims  # noqa: E402
from comfyfleet.parallel.mesh import SequenceMesh  # noqa: E402
from comfyfleet.parallel.rows import check_rows, rows_forward  # noqa: E402
from tests.parallel.ranks import Ranks  # noqa: E402
from tests.parity.case import _fill, noise  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("comfy")]

BOUND = 1e-5
RANKS = [2, 3, 4]


#: SD's and SDXL's layers, with 32 channels instead of 128.
KL = {"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": []}
KL |= {"resolution": 64, "in_channels": 3, "out_ch": 3, "z_channels": 4, "dropout": 0.0}
KL["double_z"] = True


def kl(**more: object) -> nn.Module:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return AutoencoderKL(ddconfig={**KL, **more}, embed_dim=4)


def engine() -> nn.Module:
    """Flux's and SD3's class, with attention at two sizes."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    params = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [32]}
    params |= {"resolution": 64, "in_channels": 3, "out_ch": 3, "z_channels": 16, "dropout": 0.0}
    module, target = "comfy.ldm.modules.diffusionmodules.model", "comfy.ldm.models.autoencoder"
    return AutoencodingEngine(
        encoder_config={"target": f"{module}.Encoder", "params": {**params, "double_z": True}},
        decoder_config={"target": f"{module}.Decoder", "params": params},
        regularizer_config={"target": f"{target}.DiagonalGaussianRegularizer"},
    )


def split_attention() -> nn.Module:
    """What ComfyUI takes without torch's own attention."""
    from comfy.ldm.modules.diffusionmodules.model import AttnBlock, normal_attention

    model = kl()
    for module in model.modules():
        if isinstance(module, AttnBlock):
            module.optimized_attention = normal_attention
    return model


def taesd() -> nn.Module:
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=16)


#: Name -> the model, channels and size of a pixel of its latent.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "kl": (kl, 4, 8),
    "kl, normed latent": (lambda: kl(batch_norm_latent=True), 16, 16),
    "kl, split attention": (split_attention, 4, 8),
    "engine": (engine, 16, 2),
    "taesd": (taesd, 16, 8),
}


@lru_cache
def models(name: str) -> list[nn.Module]:
    """One for each rank."""
    model = MODELS[name][0]().eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for path, weight in model.named_parameters():
            if weight.ndim:
                _fill(path, weight)
    return [model, *(copy.deepcopy(model) for _ in range(3))]


def by_rows(
    ranks: Ranks, name: str, method: str, x: Tensor, unit: int, weights: Sequence[float]
) -> Tensor:
    """What the first rank gets."""
    dims = ParallelDims(ring=len(weights))

    def work(world: World) -> Tensor:
        model = models(name)[world.place.rank]
        mesh = SequenceMesh(world, dims, tuple(weights))
        return rows_forward(mesh, model, getattr(model, method), Call((x, unit), {}))

    return ranks.run(len(weights), work)[0]


def check(
    ranks: Ranks, name: str, method: str, size: Sequence[int], weights: Sequence[float]
) -> None:
    """``size``: of the latent: batch, rows, columns."""
    _, channels, pixel = MODELS[name]
    batch, rows, columns = size
    decodes = method == "decode"
    x = noise(batch, channels, rows, columns) if decodes else noise(batch, 3, rows, columns)
    with torch.inference_mode():
        expected = getattr(models(name)[0], method)(x)
    assert expected.isfinite().all() and expected.std() > 1e-3
    found = by_rows(ranks, name, method, x, 1 if decodes else pixel, weights)
    assert found.shape == expected.shape
    error = float((found - expected).double().norm() / expected.double().norm())
    print(f"{name} {method} {tuple(size)} {tuple(weights)}: {error:.1e}")
    assert error <= BOUND


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_decode_what_one_does(ranks: Ranks, name: str, num_ranks: int):
    check(ranks, name, "decode", (2, 5, 7), (1.0,) * num_ranks)


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_encode_what_one_does(ranks: Ranks, name: str, num_ranks: int):
    pixel = MODELS[name][2]
    check(ranks, name, "encode", (2, 5 * pixel, 7 * pixel), (1.0,) * num_ranks)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("name", ["kl", "taesd"])
def test_ranks_without_a_row_are_idle(ranks: Ranks, name: str, rows: int):
    check(ranks, name, "decode", (1, rows, 4), (1.0,) * 4)
    check(ranks, name, "encode", (1, 8 * rows, 32), (1.0,) * 4)


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 4.0, 1.0), (0.01, 1.0), (1.0, 0.0, 1.0)])
def test_rows_go_by_weight(ranks: Ranks, weights: tuple[float, ...]):
    check(ranks, "kl", "decode", (1, 9, 6), weights)


@pytest.mark.parametrize("rows", [42, 43, 47])
@pytest.mark.parametrize("name", ["kl", "taesd"])
def test_a_picture_of_any_height_is_encoded(ranks: Ranks, name: str, rows: int):
    """ComfyUI crops pictures before; the split does not count on it."""
    check(ranks, name, "encode", (1, rows, 24), (1.0,) * 3)


def test_what_may_mix_rows_is_refused():
    with pytest.raises(CannotSplit, match=r"Conv3d\) is not known"):
        check_rows(kl(conv3d=True, time_compress=4))
    with pytest.raises(CannotSplit, match=r"downsample \(Downsample\) is not known"):
        check_rows(kl(resamp_with_conv=False))
    sampling = kl()
    sampling.regularization.sample = True
    with pytest.raises(CannotSplit, match="DiagonalGaussianRegularizer"):
        check_rows(sampling)
    for name in MODELS:
        check_rows(models(name)[0])
