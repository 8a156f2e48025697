"""What ComfyUI asks an extension for."""

from __future__ import annotations

import nodes
from comfy_api.latest import ComfyExtension, io

from comfyfleet.extension import watch
from comfyfleet.extension.nodes import LEGACY_NODES, NODES
from comfyfleet.extension.shares import branches


class Extension(ComfyExtension):
    """All nodes of ours, and the old ids that no other pack has registered."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        watch.install()  # here, as 0.3.75 calls nothing else of ours before its server starts
        branches.install()
        taken = nodes.NODE_CLASS_MAPPINGS
        free = [node for node in LEGACY_NODES if node.GET_SCHEMA().node_id not in taken]
        return [*NODES, *free]
