"""One sampling of a parallel model: a gang, and for each step how it is split."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from comfyfleet.comfy.options import Imprint, options_of, stripped
from comfyfleet.errors import CannotSplit, LinkLost
from comfyfleet.parallel.batch import Unsplittable
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.gang import Leader, Split
from comfyfleet.parallel.plans import find_plan
from comfyfleet.parallel.strategy import Step, Trial, Wish, choose_dims
from comfyfleet.parallel.tree import Unsendable
from comfyfleet.parallel.turns import Turns

logger = logging.getLogger(__name__)

ALONE = "one device"

#: ComfyUI's function that evaluates the conditionings of a step, given these.
Evaluate = Callable[[Sequence[Any]], list[Tensor]]


class Gang(Protocol):
    """Followers that are being gathered for one sampling."""

    def ready(self) -> World | None:
        """Wait for them; None if there are none. Raises ComfyUI's interruption."""

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each rank gets, when ready."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each rank, when ready."""

    @property
    def note(self) -> str:
        """Why it is smaller than it could be; empty if it is not."""

    def explain(self, error: LinkLost) -> str:
        """Which follower was lost, and what it said last."""

    def close(self) -> None:
        """Let the followers go, ready or not."""


class Account:
    """What one node's samplings found out, told to its user."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        #: What was measured, by what decides over it.
        self.trials: dict[tuple[Any, ...], Trial] = {}
        #: The last sampling, in a sentence; empty before the first.
        self.last = ""

    def warn(self, text: str) -> None:
        """Something is not as the user wished."""
        logger.warning("Parallel Model: %s", text)
        self._tell(text)

    def conclude(self, text: str) -> None:
        """A sampling has ended."""
        self.last = text
        logger.info("Parallel Model: %s", text)
        self._tell(text)


class Sampling:
    """The state between the first and the last step. Its methods are called by our wrappers."""

    def __init__(
        self,
        wish: Wish,
        imprint: Imprint,
        gang: Gang,
        account: Account,
        check_modules: Callable[[Any], None],
    ) -> None:
        """``check_modules`` raises CannotSplit for a model whose modules somebody changed."""
        self._check_modules: Callable[[Any], None] | None = check_modules
        self._wish = wish
        self._imprint = imprint
        self._gang = gang
        self._account = account
        self._leader: Leader | None = None
        self._turns = Turns()
        self._local = threading.local()
        #: How the present step is split; None: one device computes it.
        self._split: Split | None = None
        #: Did the present step run the model, and did all of that go as it was to be split?
        self._computed = self._as_split = False
        #: Sentences that were told.
        self._told: set[str] = set()
        #: Why one device computes the rest, why tokens and samples are not split; empty: they are.
        self._alone = self._whole_tokens = self._whole_batch = ""
        self._begun = False
        self._seconds: dict[str, list[float]] = {}
        self._trial: Trial | None = None
        self._identity: tuple[str, int] | None = None

    def step(self, evaluate: Evaluate, conds: Sequence[Any], x: Tensor, model: Any) -> list[Tensor]:
        """Evaluate the conditionings of one step as ComfyUI does, on all devices."""
        self._begin()
        step = self._step_of(conds, x, model)
        self._split, self._computed, self._as_split = self._choose(step), False, True
        self._trial = self._trial_of(x, step, model)
        if self._trial is not None and not self._trial.parallel:
            self._split = None
        began = time.perf_counter()
        out = self._evaluate(evaluate, conds)
        if self._computed:  # others may have skipped the model in this step
            self._note(began, x.device)
        return out

    def forward(self, original: Callable[..., Tensor], model: Any, call: Call, ours: str) -> Tensor:
        """One forward of the diffusion model, on the ranks of this thread's conditionings.

        ``ours`` is the method of the model's object that we replaced, if any.
        """
        self._computed = True
        split, leader = self._split, self._leader
        if split is not None and leader is not None and self._agrees(original, model, call, ours):
            cfg = getattr(self._local, "cfg", 0)
            try:
                return leader.forward(split, model, original, call, cfg, self._turns.waiting)
            except LinkLost as error:
                self._lose(error)
            except Unsplittable as error:
                self._whole_batch = str(error)
                self._warn(f"The batch is not split: {error}")
            except CannotSplit as error:
                self._whole_tokens = str(error)
                self._warn(f"The tokens are not split: {error}")
            except Unsendable as error:
                self.stop(f"{error}; put Parallel Model after the node that adds it.")
        self._as_split = self._as_split and split is None
        return original(*call.args, **call.kwargs)

    def stop(self, reason: str) -> None:
        """Go on alone."""
        self._alone, self._split = reason, None
        self._warn(f"One device computes: {reason}")

    def bypass(self, reason: str) -> None:
        """A forward that is not ours to share, now or later."""
        self._computed = True
        if not self._alone:
            self.stop(reason)

    def close(self) -> None:
        """Let the gang go, and say how it went."""
        if self._leader is not None:
            self._leader.close()
        self._gang.close()
        if self._seconds:
            self._account.conclude(self._summary())

    def _begin(self) -> None:
        """Wait for the gang at the first step: until then it was gathered beside us."""
        if self._begun:
            return
        self._begun = True
        world = None if self._alone else self._gang.ready()
        if world is not None:
            self._lead(world)
        if self._gang.note and not self._alone:
            self._warn(self._gang.note)

    def _lead(self, world: World) -> None:
        try:
            self._leader = Leader(world, stripped)
        except LinkLost as error:
            world.close()
            self.stop(self._gang.explain(error))

    def _agrees(self, original: Callable[..., Tensor], model: Any, call: Call, ours: str) -> bool:
        """Would followers compute the same?"""
        check, self._check_modules = self._check_modules, None
        try:
            if check is not None:  # once: others change modules before the first step
                check(model)
        except CannotSplit as error:
            self.stop(str(error))
            return False
        try:
            self._imprint.check_call(model, options_of(original, call), ours)
        except CannotSplit as error:
            self._warn(f"One device computes what cannot be shared: {error}")
            return False
        return True

    def _step_of(self, conds: Sequence[Any], x: Tensor, model: Any) -> Step:
        if any(cond.get("hooks") is not None for entries in conds for cond in entries or ()):
            self.stop("hooks of a conditioning change the weights, which followers cannot see.")
        try:
            find_plan(model.diffusion_model)
        except CannotSplit as error:
            self._whole_tokens = self._whole_tokens or str(error)
        return Step(
            conditionings=max(1, sum(bool(entries) for entries in conds)),
            samples=1 if self._whole_batch else x.shape[0],
            unsplittable=self._whole_tokens,
        )

    def _choose(self, step: Step) -> Split | None:
        if self._leader is None or self._alone:
            return None
        try:
            dims = choose_dims(self._wish, len(self._gang.weights), step)
        except CannotSplit as error:
            self._warn(f"One device computes: {error}")
            return None
        return Split(dims, self._gang.weights[: dims.size]) if dims.size > 1 else None

    def _evaluate(self, evaluate: Evaluate, conds: Sequence[Any]) -> list[Tensor]:
        degree = self._split.dims.cfg if self._split is not None else 1
        if degree == 1:
            return evaluate(conds)
        used = [i for i, entries in enumerate(conds) if entries]
        groups = [set(used[group::degree]) for group in range(degree)]
        outs = self._turns.run(
            [partial(self._evaluate_group, evaluate, conds, *entry) for entry in enumerate(groups)]
        )
        owner = {i: group for group, members in enumerate(groups) for i in members}
        return [outs[owner.get(i, 0)][i] for i in range(len(conds))]

    def _evaluate_group(
        self, evaluate: Evaluate, conds: Sequence[Any], group: int, members: set[int]
    ) -> list[Tensor]:
        self._local.cfg = group
        try:
            return evaluate([entries if i in members else None for i, entries in enumerate(conds)])
        finally:
            self._local.cfg = 0

    def _trial_of(self, x: Tensor, step: Step, model: Any) -> Trial | None:
        """What is known of such steps; only ``auto`` may decide to use one device."""
        if self._wish.strategy != "auto" or self._split is None:
            return None
        if self._identity is None:
            self._identity = _identity(model)
        shape, gang = tuple(x.shape), (self._gang.devices, self._gang.weights)
        key = (self._identity, shape, step, gang, self._wish)
        return self._account.trials.setdefault(key, Trial())

    def _note(self, began: float, device: torch.device) -> None:
        if device.type == "cuda" and self._trial is not None and self._trial.speedup is None:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        way = str(self._split.dims) if self._split and self._as_split else ALONE
        self._seconds.setdefault(way, []).append(seconds)
        if self._trial is not None and self._as_split:
            self._trial.note(self._split is not None, seconds)

    def _lose(self, error: LinkLost) -> None:
        if self._leader is None:  # another thread has lost another follower
            return
        self._leader.world.close()
        self._leader = None
        self.stop(f"{self._gang.explain(error)} This step is repeated.")

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._account.warn(text)

    def _summary(self) -> str:
        ways = [f"{len(taken)} as {way}" for way, taken in self._seconds.items()]
        text = f"Last sampling: {', '.join(ways)}; devices: {', '.join(self._gang.devices)}."
        if self._trial is not None and self._trial.speedup is not None:
            text += f" Measured: {self._trial.speedup:.2f} times faster than one device."
            if not self._trial.parallel:
                text += " So one device computes."
        return text


def _identity(model: Any) -> tuple[str, int]:
    """What tells models apart by their speed: another may be behind the same node tomorrow."""
    size = sum(weight.numel() for weight in model.diffusion_model.parameters())
    return type(model.diffusion_model).__qualname__, size
