"""Models and VAEs that do not belong together."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy


def model(channels: int, dimensions: int) -> Any:
    form = SimpleNamespace(latent_channels=channels, latent_dimensions=dimensions)
    return SimpleNamespace(get_model_object=lambda name: form)


def vae(channels: int, dimensions: int) -> Any:
    return SimpleNamespace(
        latent_channels=channels, latent_dim=dimensions, throw_exception_if_invalid=lambda: None
    )


def test_a_vae_of_videos_is_none_for_a_model_of_pictures(
    values: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    from comfyfleet.errors import InputError
    from comfyfleet.extension.nodes.upscale import _require_fitting

    _require_fitting(model(16, 2), vae(16, 2))
    _require_fitting(model(16, 3), vae(16, 3))
    with pytest.raises(InputError, match="a VAE of videos, but the model makes pictures"):
        _require_fitting(model(16, 2), vae(16, 3))
    with pytest.raises(InputError, match="latents of 16 channels, but the model takes 4"):
        _require_fitting(model(4, 2), vae(16, 2))
