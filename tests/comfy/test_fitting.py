"""Models and VAEs that do not belong together, or not to pictures."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

pytestmark = pytest.mark.comfy


def model(channels: int, dimensions: int) -> Any:
    form = SimpleNamespace(latent_channels=channels, latent_dimensions=dimensions)
    return SimpleNamespace(get_model_object=lambda name: form)


def vae(channels: int, dimensions: int, colors: int = 3) -> Any:
    return SimpleNamespace(
        latent_channels=channels,
        latent_dim=dimensions,
        output_channels=colors,
        throw_exception_if_invalid=lambda: None,
    )


@pytest.fixture(autouse=True)
def server(values: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())


def test_a_vae_of_videos_is_none_for_a_model_of_pictures() -> None:
    from comfyfleet.errors import InputError
    from comfyfleet.extension.nodes.upscale import _require_fitting

    _require_fitting(model(16, 2), vae(16, 2))
    _require_fitting(model(16, 3), vae(16, 3))
    with pytest.raises(InputError, match="a VAE of videos, but the model makes pictures"):
        _require_fitting(model(16, 2), vae(16, 3))
    with pytest.raises(InputError, match="latents of 16 channels, but the model takes 4"):
        _require_fitting(model(4, 2), vae(16, 2))


def test_a_vae_of_sound_is_none_for_pictures() -> None:
    from comfyfleet.errors import InputError
    from comfyfleet.extension.nodes.vae import _require_no_sound

    _require_no_sound(vae(4, 2))
    with pytest.raises(InputError, match="a VAE of sound"):
        _require_no_sound(vae(64, 1))


def test_a_latent_of_sound_in_the_form_of_a_picture_is_no_picture() -> None:
    """ACE-Step's: two dimensions as those of a picture, of which a picture would be nonsense."""
    from comfyfleet.errors import InputError
    from comfyfleet.extension.nodes.vae import _latent_of

    latent = torch.zeros(1, 8, 16, 32)
    assert _latent_of({"samples": latent}, vae(8, 2)) is latent
    with pytest.raises(InputError, match="a VAE of sound"):
        _latent_of({"samples": latent}, vae(8, 2, colors=2))


def test_an_upscale_model_of_grey_pictures_is_refused() -> None:
    from comfyfleet.errors import InputError
    from comfyfleet.extension.spread.upscaling import ModelUpscale

    with pytest.raises(InputError, match="upscale_model takes 1 channels"):
        ModelUpscale(upscale_model=SimpleNamespace(input_channels=1))
