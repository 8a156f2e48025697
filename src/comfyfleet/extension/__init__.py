"""ComfyUI's front door: the nodes, and the fleet of the ComfyUI that the user talks to."""

from comfyfleet.extension.entry import Extension

__all__ = ["Extension"]
