"""The ranks of all parity tests, ComfyUI's modules, and the table that the tests write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.ranks import Ranks
from tests.parity.table import Table


@pytest.fixture(scope="session")
def comfy(comfyui: Path) -> None:
    """ComfyUI's model classes in this process."""
    import torch

    if str(comfyui) not in sys.path:
        sys.path.append(str(comfyui))
    import comfy.cli_args

    # Both are read once, when comfy.model_management is first imported.
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.use_pytorch_cross_attention = True


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


@pytest.fixture(scope="session")
def table(comfy: None) -> Iterator[Table]:
    from comfyui_version import __version__

    from tests.parity.test_parity import CASES, COLUMNS

    found = Table(__version__, [case.id for case in CASES], list(COLUMNS))
    yield found
    found.write()
