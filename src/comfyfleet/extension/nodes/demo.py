"""The embedded demo model as a loader node."""

from __future__ import annotations

from comfy_api.latest import io

from comfyfleet.comfy.demo_model import load_demo_model
from comfyfleet.config import demo_dir


class FleetDemoModel(io.ComfyNode):
    """A tiny text-to-image model that comes with ComfyFleet: coloured shapes, 128x128."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetDemoModel",
            display_name="Fleet Demo Model",
            category="fleet",
            description="A small trained diffusion model that comes with ComfyFleet. It draws "
            'coloured shapes from prompts such as "a small red star, top left, on white" at '
            "128x128, in about a second on a CPU: to try a fleet before any model is downloaded.",
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(demo_dir() / "weights.safetensors"))
