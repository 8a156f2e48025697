"""A bed for tests of Parallel Model: tiny models for stock loaders, prompts, recorded events.

Nothing here imports ComfyUI, except the node pack in ``pack``, which ComfyUI opens.
"""

from __future__ import annotations

from pathlib import Path

#: The pack of test nodes; it also turns on previews (latent2rgb) in the ComfyUI that opens it.
PACK = Path(__file__).resolve().parent / "pack"
