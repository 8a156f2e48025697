"""ComfyUI's decode and encode around a gang: what one device gives, whatever goes wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from comfyfleet.errors import CannotSplit, LinkLost  # noqa: E402
from comfyfleet.parallel.comm import World  # noqa: E402
from comfyfleet.parallel.gang import Follower  # noqa: E402
from comfyfleet.parallel.strips import Strips  # noqa: E402
from tests.parallel.ranks import Ranks  # noqa: E402
from tests.parity.case import noise  # noqa: E402
from tests.parity.test_vae_rows import KL, kl, models  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("comfy")]

#: How a follower joins its gang, and what it does then.
Join = Callable[[], Follower]
Follow = Callable[[Join], object]

LATENT = (2, 4, 7, 5)
PICTURES = (2, 59, 40, 3)


@pytest.fixture(scope="module")
def vaes(comfy: None) -> list[Any]:
    """One for each rank, with the weights of the other tests."""
    import comfy.sd

    config = {"params": {"ddconfig": KL, "embed_dim": 4}}
    weights = models("kl")[0].state_dict()
    return [comfy.sd.VAE(sd=dict(weights), config=config) for _ in range(3)]


class Gang:
    """Followers that are here already."""

    devices, note = ("cpu",) * 3, ""

    def __init__(self, world: World | None) -> None:
        self._world = world
        self.weights = (1.0, 2.0, 1.0)
        self.closed = False

    def ready(self) -> World | None:
        return self._world

    def explain(self, error: LinkLost) -> str:
        return "One was lost."

    def close(self) -> None:
        self.closed = True


class Told(list[str]):
    """What the user was told, and of which level."""

    def __init__(self) -> None:
        super().__init__()
        self.any = threading.Event()

    def __call__(self, text: str, level: int) -> None:
        self.append(f"{logging.getLevelName(level)}: {text}")
        self.any.set()


@dataclass(frozen=True)
class Bed:
    """A leader and two followers, each with its VAE."""

    ranks: Ranks
    vaes: Sequence[Any]
    told: Told = field(default_factory=Told)

    def run(self, method: str, value: Tensor, follow: Follow) -> Tensor:
        from comfyfleet.comfy.exact_vae import BY_ROWS, ExactVAE

        def work(world: World) -> Tensor | None:
            vae = self.vaes[world.place.rank]
            if world.place.rank:
                follow(partial(Follower, world, vae.first_stage_model, way=BY_ROWS))
                return None
            gang = Gang(world)
            found = ExactVAE(vae, gang, self.told).run(method, value)
            assert gang.closed
            return found

        try:
            return self.ranks.run(3, work)[0]
        finally:
            assert not {"decode", "encode"} & vars(self.vaes[0].first_stage_model).keys()

    def check(self, found: Tensor, method: str, value: Tensor) -> None:
        with torch.inference_mode():
            expected = getattr(self.vaes[0], method)(value)
        assert found.shape == expected.shape
        error = float((found - expected).norm() / expected.norm())
        print(f"{method}: {error:.1e}")
        assert error <= 1e-5


@pytest.fixture
def bed(ranks: Ranks, vaes: list[Any]) -> Bed:
    return Bed(ranks, vaes)


def serves(join: Join) -> int:
    return join().serve()


def loses(join: Join) -> None:
    follower = join()
    with pytest.raises(LinkLost):
        follower.serve()


@pytest.mark.parametrize(("method", "shape"), [("decode", LATENT), ("encode", PICTURES)])
def test_all_compute_what_one_does(bed: Bed, method: str, shape: tuple[int, ...]):
    value = noise(*shape)
    bed.check(bed.run(method, value, serves), method, value)
    assert bed.told == [f"INFO: Exact {method}: rows on cpu, cpu, cpu."]


def test_a_batch_in_parts_is_shared_part_by_part(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bed.vaes[0], "memory_used_decode", lambda shape, dtype: 1e18)
    served: list[int] = []
    found = bed.run("decode", noise(*LATENT), lambda join: served.append(serves(join)))
    bed.check(found, "decode", noise(*LATENT))
    assert served == [2, 2] and len(bed.told) == 1


def test_a_lost_follower_costs_only_time(bed: Bed):
    all_are_here = threading.Event()

    def follow(join: Join) -> None:
        follower = join()
        if follower._world.place.rank == 1:
            assert all_are_here.wait(60)
            follower._world.close()
            return
        all_are_here.set()
        with pytest.raises(LinkLost):
            follower.serve()

    bed.check(bed.run("decode", noise(*LATENT), follow), "decode", noise(*LATENT))
    assert bed.told == ["WARNING: One device computes: One was lost. It is repeated."]


def test_a_follower_that_is_lost_before_the_next_comes_costs_only_time(bed: Bed):
    """The next comes when the leader has given up: before, these two could still connect."""

    def follow(join: Join) -> None:
        if threading.current_thread().name.startswith("rank1"):
            join()._world.close()
            return
        assert bed.told.any.wait(60)
        with pytest.raises(LinkLost):
            join()

    bed.check(bed.run("decode", noise(*LATENT), follow), "decode", noise(*LATENT))
    assert bed.told == ["WARNING: One device computes: One was lost."]


def test_an_error_here_is_raised_and_ends_it_for_all(bed: Bed, monkeypatch: pytest.MonkeyPatch):
    """Followers are in the middle of a forward then, and learn of it at once."""

    def fails(self: Strips, x: Tensor, *args: Any) -> Tensor:
        if threading.current_thread().name.startswith("rank0"):
            raise ZeroDivisionError
        return normalized(self, x, *args)

    normalized = Strips.normalized
    monkeypatch.setattr(Strips, "normalized", fails)
    with pytest.raises(ZeroDivisionError):
        bed.run("decode", noise(*LATENT), loses)


def test_nobody_came(bed: Bed):
    from comfyfleet.comfy.exact_vae import ExactVAE

    gang = Gang(None)
    gang.note = "cpu-0 is busy or gone."
    with torch.inference_mode():
        found = ExactVAE(bed.vaes[0], gang, bed.told).run("decode", noise(*LATENT))
    bed.check(found, "decode", noise(*LATENT))
    assert bed.told == ["WARNING: One device computes: cpu-0 is busy or gone."]


def test_what_cannot_be_exact_is_refused():
    from comfyfleet.comfy.exact_vae import check_exact

    vae = type("VAE", (), {"first_stage_model": kl()})()
    check_exact(vae, "decode")
    vae.first_stage_model.decode = lambda x: x
    check_exact(vae, "encode")
    with pytest.raises(CannotSplit, match="replaced decode"):
        check_exact(vae, "decode")
    with pytest.raises(CannotSplit, match="no model"):
        check_exact(object(), "decode")
