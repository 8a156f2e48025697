"""A MODEL whose forwards are computed by a gang: keyed wrappers on a clone, nothing else.

The sampler, the guider, previews, cancel and seeds stay where they are; so do all wrappers of other
nodes. Ours are put last, directly around the forward: what they skip (EasyCache), followers never
see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from comfyfleet.comfy.options import Imprint, is_replaced
from comfyfleet.comfy.sampling import Account, Gang, Sampling
from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.strategy import Wish

#: The key of our wrappers.
KEY = "comfyfleet"

#: The shape of the latent -> followers on their way; called once per sampling.
OpenGang = Callable[[Sequence[int]], Gang]


class ParallelModel:
    """What our wrappers share. ``attach`` makes the clone that carries them."""

    def __init__(self, wish: Wish, open_gang: OpenGang, account: Account) -> None:
        self._wish = wish
        self._open_gang = open_gang
        self._account = account
        self._imprint: Imprint | None = None
        #: The present sampling; None outside of one.
        self._sampling: Sampling | None = None

    def attach(self, patcher: Any) -> Any:
        """A clone of the ModelPatcher whose samplings use gangs. What is given is not changed."""
        clone = patcher.clone()
        self._imprint = Imprint.of(clone)
        wrappers = {
            WrappersMP.OUTER_SAMPLE: self._outer_sample,
            WrappersMP.CALC_COND_BATCH: self._calc_cond_batch,
            WrappersMP.APPLY_MODEL: self._apply_model,
            WrappersMP.DIFFUSION_MODEL: self._diffusion_model,
        }
        if clone.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
            self._account.warn(
                "The Parallel Model node before this one is not used; one is enough."
            )
        for kind, wrapper in wrappers.items():
            clone.remove_wrappers_with_key(kind, KEY)
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        return clone

    def _outer_sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Gather followers while ComfyUI loads the model here, and let them go at the end."""
        assert self._imprint is not None
        patcher, outer = executor.class_obj.model_patcher, self._sampling
        try:
            self._imprint.check(patcher)
        except CannotSplit as error:
            self._account.warn(f"One device computes: {error}")
            return executor(noise, *args, **kwargs)
        gang = self._open_gang(noise.shape)
        check = partial(self._imprint.check_modules, patcher)
        self._sampling = Sampling(self._wish, self._imprint, gang, self._account, check)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self._sampling.close()
            self._sampling = outer

    def _calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Any, options: Any
    ) -> Any:
        if (behind := _behind_others(executor, self._calc_cond_batch)) is not None:
            return behind.execute(model, conds, x, timestep, options)
        if self._sampling is None:
            return executor(model, conds, x, timestep, options)

        def evaluate(some: Sequence[Any]) -> list[Tensor]:
            found: list[Tensor] = executor(model, list(some), x, timestep, options)
            return found

        return self._sampling.step(evaluate, conds, x, model)

    def _diffusion_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        if (behind := _behind_others(executor, self._diffusion_model)) is not None:
            return behind.execute(*args, **kwargs)
        if self._sampling is None:
            return executor(*args, **kwargs)
        call = Call(args, kwargs)
        return self._sampling.forward(executor.original, executor.class_obj, call, "")

    def _apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Some models (SD3) call no wrappers around their forward: then it is replaced itself."""
        model = executor.class_obj.diffusion_model
        if self._sampling is None or _calls_wrappers(model):
            return executor(*args, **kwargs)
        if is_replaced(model, "forward"):
            replaced = vars(model)["forward"]
            if getattr(replaced, "func", None) != self._replaced_forward:  # of another thread
                self._sampling.bypass("a node replaces the model's own forward.")
            return executor(*args, **kwargs)
        model.forward = partial(self._replaced_forward, model, self._sampling)
        try:
            return executor(*args, **kwargs)
        finally:
            del model.forward

    def _replaced_forward(self, model: Any, sampling: Sampling, *args: Any, **kwargs: Any) -> Any:
        original = type(model).forward.__get__(model)
        return sampling.forward(original, model, Call(args, kwargs), "forward")


def _calls_wrappers(model: Any) -> bool:
    code = getattr(type(model).forward, "__code__", None)
    return code is None or "DIFFUSION_MODEL" in code.co_names


def _behind_others(executor: Any, wrapper: Callable[..., Any]) -> Any:
    """An executor that calls this wrapper after the rest; None if it is the last already."""
    rest = executor.wrappers[executor.idx + 1 :]
    if not rest:
        return None
    return WrapperExecutor(executor.original, executor.class_obj, [*rest, wrapper], 0)
