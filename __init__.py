"""ComfyUI opens this file. It makes ``comfyfleet`` importable by its own name and hands over."""

import sys
from pathlib import Path

_SRC = Path(__file__).resolve().parent / "src"
if _SRC.is_dir() and str(_SRC) not in sys.path:
    sys.path.insert(0, str(_SRC))  # one import path only: workers must be able to unpickle by name

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 - ComfyUI's types are not importable here
    from comfyfleet.extension import Extension

    return Extension()
