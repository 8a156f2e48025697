"""ComfyUI's own tiled algorithms with their tiles computed elsewhere."""

from __future__ import annotations

from types import ModuleType

import pytest

pytestmark = pytest.mark.comfy


def test_progress_is_told_again_when_the_last_silence_has_ended(values: ModuleType) -> None:
    import comfy.utils

    from comfyfleet.comfy.tiled import silent

    before = comfy.utils.PROGRESS_BAR_HOOK

    def hook(*_: object) -> None: ...

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        feeder, main = silent(), silent()
        feeder.__enter__()
        main.__enter__()
        feeder.__exit__()
        assert comfy.utils.PROGRESS_BAR_HOOK is None
        main.__exit__()
        assert comfy.utils.PROGRESS_BAR_HOOK is hook
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
