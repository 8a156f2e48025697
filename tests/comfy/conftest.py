"""ComfyUI's own modules in the tests' process, set up as tests/demo does: the order is equal."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def values(comfyui: Path) -> ModuleType:
    """The module comfyfleet.comfy.values, beside the ComfyUI that it needs."""
    torch = pytest.importorskip("torch")
    if str(comfyui) not in sys.path:
        sys.path.append(str(comfyui))
    import comfy.cli_args

    # Both are read once, when comfy.model_management is first imported.
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.use_pytorch_cross_attention = True
    from comfyfleet.comfy import values

    return values
