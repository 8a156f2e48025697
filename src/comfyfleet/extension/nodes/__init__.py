"""The nodes. A file holds the nodes of one subject; each unpacks, calls and wraps."""

from comfyfleet.extension.nodes.batches import (
    FleetAudioBatchDivider,
    FleetBatchDivider,
    FleetEmptyImage,
)
from comfyfleet.extension.nodes.branch import FleetBranch, FleetBranchHere, FleetBranchRun
from comfyfleet.extension.nodes.collector import (
    FleetCollectBegin,
    FleetCollectNext,
    FleetCollector,
)
from comfyfleet.extension.nodes.demo import FleetDemoModel
from comfyfleet.extension.nodes.internal import (
    FleetPart,
    FleetReturn,
    FleetSeedOffset,
    FleetShipped,
)
from comfyfleet.extension.nodes.legacy import LEGACY_NODES
from comfyfleet.extension.nodes.parallel import FleetFollow, FleetFollowVAE, FleetParallelModel
from comfyfleet.extension.nodes.split import FleetSplit
from comfyfleet.extension.nodes.tiles import FleetSampleTiles, FleetSpread, FleetUpscaleTiles
from comfyfleet.extension.nodes.upscale import FleetModelUpscale, FleetUpscale
from comfyfleet.extension.nodes.vae import (
    FleetDecodeTiles,
    FleetEncodeTiles,
    FleetVAEDecode,
    FleetVAEEncode,
)
from comfyfleet.extension.nodes.values import FleetModelName, FleetSeed, FleetValue
from comfyfleet.extension.nodes.video import FleetModelUpscaleVideo, FleetUpscaleVideo

NODES = [
    FleetSeed,
    FleetValue,
    FleetCollector,
    FleetSplit,
    FleetBranch,
    FleetBatchDivider,
    FleetAudioBatchDivider,
    FleetModelName,
    FleetEmptyImage,
    FleetDemoModel,
    FleetParallelModel,
    FleetUpscale,
    FleetModelUpscale,
    FleetUpscaleVideo,
    FleetModelUpscaleVideo,
    FleetVAEDecode,
    FleetVAEEncode,
    FleetCollectBegin,
    FleetCollectNext,
    FleetBranchRun,
    FleetBranchHere,
    FleetReturn,
    FleetSeedOffset,
    FleetShipped,
    FleetPart,
    FleetFollow,
    FleetFollowVAE,
    FleetSpread,
    FleetSampleTiles,
    FleetUpscaleTiles,
    FleetDecodeTiles,
    FleetEncodeTiles,
]

__all__ = ["LEGACY_NODES", "NODES"]
