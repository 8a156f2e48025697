"""A rank's place in its sequence group, in worlds that have more than one."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import HashStore

from comfyfleet.parallel.comm import Place, World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.mesh import SequenceMesh
from tests.parallel.ranks import Ranks

WEIGHTS = (1.0, 2.0, 3.0, 4.0)


def mesh_of(rank: int, **degrees: int) -> SequenceMesh:
    dims = ParallelDims(**degrees)
    place = Place(rank=rank, size=dims.size, device=torch.device("cpu"))
    return SequenceMesh(World(HashStore(), place), dims, WEIGHTS[: dims.sequence])


@pytest.mark.parametrize("degrees", [{"ulysses": 2, "ring": 2}, {"ulysses": 4}, {"ring": 4}])
def test_shards_are_in_rank_order_and_blocks_hold_them_all(degrees: dict[str, int]):
    for cfg in (0, 1):
        meshes = [mesh_of(4 * cfg + shard, cfg=2, **degrees) for shard in range(4)]
        assert {mesh.ranks for mesh in meshes} == {tuple(range(4 * cfg, 4 * cfg + 4))}
        assert [mesh.index for mesh in meshes] == [0, 1, 2, 3]
        blocks = [list(meshes[0].shards_of_block(i)) for i in range(degrees.get("ring", 1))]
        assert [shard for block in blocks for shard in block] == [0, 1, 2, 3]
        assert all(mesh.index in blocks[mesh.block] for mesh in meshes)


def test_all_blocks_of_a_ring_share_heads_alike():
    for rank in range(4):
        assert mesh_of(rank, ulysses=2, ring=2).head_weights == [4.0, 6.0]
        assert mesh_of(rank, ulysses=4).head_weights == list(WEIGHTS)
        assert mesh_of(rank, ring=4).head_weights == [10.0]


def test_groups(ranks: Ranks):
    def work(world: World) -> list[tuple[int, ...]]:
        mesh = SequenceMesh(world, ParallelDims(ulysses=2, ring=2), WEIGHTS)
        return [group.ranks for group in (mesh.sequence, mesh.ulysses, mesh.ring)]

    assert ranks.run(4, work) == [
        [(0, 1, 2, 3), (0, 1), (0, 2)],
        [(0, 1, 2, 3), (0, 1), (1, 3)],
        [(0, 1, 2, 3), (2, 3), (0, 2)],
        [(0, 1, 2, 3), (2, 3), (1, 3)],
    ]
