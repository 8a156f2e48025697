"""The nodes. A file holds the nodes of one subject; each unpacks, calls and wraps."""

from comfyfleet.extension.nodes.batches import (
    FleetAudioBatchDivider,
    FleetBatchDivider,
    FleetEmptyImage,
)
from comfyfleet.extension.nodes.collector import FleetCollectNext, FleetCollector
from comfyfleet.extension.nodes.demo import FleetDemoModel
from comfyfleet.extension.nodes.internal import FleetReturn, FleetSeedOffset
from comfyfleet.extension.nodes.legacy import LEGACY_NODES
from comfyfleet.extension.nodes.parallel import FleetFollow, FleetParallelModel
from comfyfleet.extension.nodes.values import FleetModelName, FleetSeed, FleetValue

NODES = [
    FleetSeed,
    FleetValue,
    FleetCollector,
    FleetBatchDivider,
    FleetAudioBatchDivider,
    FleetModelName,
    FleetEmptyImage,
    FleetDemoModel,
    FleetParallelModel,
    FleetCollectNext,
    FleetReturn,
    FleetSeedOffset,
    FleetFollow,
]

__all__ = ["LEGACY_NODES", "NODES"]
