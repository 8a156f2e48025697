"""N ranks compute what one computes, for every family, with ComfyUI's own model classes."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from functools import lru_cache

import pytest

torch = pytest.importorskip("torch")

from comfyfleet.parallel.batch import Unsplittable  # noqa: E402
from comfyfleet.parallel.comm import World  # noqa: E402
from comfyfleet.parallel.engine import sequence_forward  # noqa: E402
from comfyfleet.parallel.gang import Follower, Leader, Split  # noqa: E402
from comfyfleet.parallel.mesh import SequenceMesh  # noqa: E402
from comfyfleet.parallel.plans import find_plan  # noqa: E402
from tests.parallel.ranks import Ranks  # noqa: E402
from tests.parity import families  # noqa: E402
from tests.parity.case import GANGS, SPLITS, Case  # noqa: E402
from tests.parity.table import Table  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("comfy")]

BOUND = 1e-5
COLUMNS = {**SPLITS, **GANGS}

CASES = [
    case
    for module in pkgutil.iter_modules(families.__path__)
    for case in importlib.import_module(f"{families.__name__}.{module.name}").CASES
]


@lru_cache(maxsize=2)
def whole(case: Case):
    """The model on one rank per rank, the arguments, and what one rank computes."""
    model = case.build()
    with torch.inference_mode():
        call = case.call()
        expected = joined(forward_of(model)(*call.args, **call.kwargs))
    assert torch.isfinite(expected).all() and expected.std() > 1e-3
    return [model, *(copy.deepcopy(model) for _ in range(3))], expected


def forward_of(model):
    """The bare forward; a class that runs no wrappers has no other."""
    return getattr(model, "_forward", model.forward)


def joined(out):
    """One tensor, also where there are several: picture and sound."""
    return out if isinstance(out, torch.Tensor) else torch.cat([part.flatten() for part in out])


def relative_error(found, expected) -> float:
    return ((found - expected).double().norm() / expected.double().norm()).item()


@pytest.mark.parametrize("column", SPLITS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_ranks_compute_what_one_does(case: Case, column: str, ranks: Ranks, table: Table):
    table.begin(case.id, column)
    if column not in case.splits:
        pytest.skip("refused by the family")
    models, expected = whole(case)
    dims = SPLITS[column]

    def work(world: World):
        model = models[world.place.rank]
        mesh = SequenceMesh(world, dims, (1.0,) * dims.size)
        return joined(
            sequence_forward(find_plan(model), mesh, model, forward_of(model), case.call())
        )

    found = ranks.run(dims.size, work)
    error = max(relative_error(out, expected) for out in found)
    table.note(case.id, column, error)
    assert error <= BOUND


@pytest.mark.parametrize("column", GANGS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gangs_compute_what_one_does(case: Case, column: str, ranks: Ranks, table: Table):
    table.begin(case.id, column)
    dims, (models, expected) = GANGS[column], whole(case)
    if dims.sequence > 1 and not case.splits:
        pytest.skip("the family has no plan")
    x = case.call().args[0]
    if dims.batch > 1 and not (isinstance(x, torch.Tensor) and x.shape[0] > 1):
        pytest.skip("a batch of one")

    def work(world: World):
        model = models[world.place.rank]
        if world.place.rank:
            Follower(world, model).serve()
            return []
        leader, split = Leader(world), Split(dims, (1.0,) * dims.size)
        outs = [
            joined(leader.forward(split, model, forward_of(model), case.call(), cfg))
            for cfg in range(dims.cfg)
        ]
        leader.close()
        return outs

    try:
        found = ranks.run(dims.size, work)[0]
    except Unsplittable as error:
        pytest.skip(str(error))
    error = max(relative_error(out, expected) for out in found)
    table.note(case.id, column, error)
    assert error <= BOUND
