"""One picture faster: a MODEL goes in, a MODEL that several devices compute comes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from comfyfleet.comfy import prompts
from comfyfleet.comfy.parallel_model import ParallelModel
from comfyfleet.config import is_worker
from comfyfleet.errors import InputError, Problem, WorkflowError
from comfyfleet.extension.gang.parallel import (
    MAX_KEPT,
    Opener,
    account_of,
    describe,
    follow_prompt,
    read_weights,
)
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes.internal import INTERNAL
from comfyfleet.fleet.guard import SESSION_MARK
from comfyfleet.parallel.roster import Ticket
from comfyfleet.parallel.strategy import AXES, Wish


class FleetParallelModel(io.ComfyNode):
    """Each sampling step of this model is computed by several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetParallelModel",
            display_name="Parallel Model",
            category="fleet",
            description="Each step of every sampler behind it is computed by several devices, "
            "with the same picture as one. Put it last before the sampler, after LoRA and other "
            "model patches.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "strategy",
                    options=list(AXES),
                    optional=True,
                    default="auto",
                    tooltip="auto: conditionings (cfg) first, then the tokens (sequence) where the "
                    "model's family is known, then the batch; one device where that is faster.",
                ),
                io.String.Input(
                    "devices",
                    optional=True,
                    default="all",
                    tooltip="all, or a list of workers such as cuda1, cuda2. This device always "
                    "takes part.",
                ),
                _advanced(
                    io.Int.Input(
                        "ulysses",
                        optional=True,
                        default=0,
                        min=0,
                        max=64,
                        tooltip="Ulysses degree of the sequence; 0: as fits.",
                    )
                ),
                _advanced(
                    io.Int.Input(
                        "ring",
                        optional=True,
                        default=0,
                        min=0,
                        max=64,
                        tooltip="Ring degree of the sequence; 0: no ring.",
                    )
                ),
                _advanced(
                    io.String.Input(
                        "weights",
                        optional=True,
                        default="",
                        tooltip="How much each device gets, such as 1, 0.5: this device, then the "
                        "workers in order. Empty: all equal.",
                    )
                ),
            ],
            outputs=[io.Model.Output(), io.String.Output("report", "report")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strategy: Any = "auto",
        devices: str = "all",
        ulysses: int = 0,
        ring: int = 0,
        weights: str = "",
    ) -> io.NodeOutput:
        if is_worker():
            return io.NodeOutput(model, "On a worker: this device computes alone.")
        node_id, wish = cls.hidden.unique_id, Wish(strategy=strategy, ulysses=ulysses, ring=ring)
        try:
            shares = read_weights(devices, weights, master().gang_names)
            wish.check(len(shares))
        except InputError as error:
            problem = Problem(message=str(error), node_id=node_id, class_type="FleetParallelModel")
            raise WorkflowError([problem]) from None
        account = account_of(node_id)
        if len(shares) == 1:
            return io.NodeOutput(model, "There is no other device: this one computes alone.")
        master().warm_up()
        prompt_of = follow_prompt(node_id, prompts.plain_prompt(cls.hidden.dynprompt))
        clone = ParallelModel(wish, Opener(prompt_of, shares, account), account).attach(model)
        return io.NodeOutput(clone, describe(wish, shares, model, account))


def _advanced(made: Any) -> Any:
    """An input that the page folds away; 0.3.75 has no argument for it yet."""
    made.extra_dict["advanced"] = True
    return made


class FleetFollow(io.ComfyNode):
    """The end of a follower's graph: serves forwards of the model to a leader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetFollow",
            display_name="Fleet Follow (internal)",
            category=INTERNAL,
            description="Computes a model's steps together with the ComfyUI that samples. "
            "ComfyFleet adds it by itself.",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Model.Input("model"),
                io.String.Input("ticket"),
                *_kept_inputs(),
            ],
        )

    @classmethod
    def check_lazy_status(cls, **_inputs: Any) -> list[str]:
        return []

    @classmethod
    def execute(cls, model: Any, ticket: str, **_kept: Any) -> io.NodeOutput:
        _check_place()
        # Only now: it is for workers alone.
        from comfyfleet.comfy.follow import follow

        follow(model, Ticket.from_json(ticket), Path(os.environ[SESSION_MARK]))
        return io.NodeOutput()


class FleetFollowVAE(io.ComfyNode):
    """The end of a follower's graph: decodes or encodes rows of pictures with a leader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetFollowVAE",
            display_name="Fleet Follow VAE (internal)",
            category=INTERNAL,
            description="Computes rows of a picture together with the ComfyUI that decodes or "
            "encodes it. ComfyFleet adds it by itself.",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Vae.Input("vae"),
                io.String.Input("ticket"),
                io.Combo.Input("method", options=["decode", "encode"]),
                *_kept_inputs(),
            ],
        )

    @classmethod
    def check_lazy_status(cls, **_inputs: Any) -> list[str]:
        return []

    @classmethod
    def execute(cls, vae: Any, ticket: str, method: Any, **_kept: Any) -> io.NodeOutput:
        _check_place()
        from comfyfleet.comfy.follow import follow_vae

        follow_vae(vae, method, Ticket.from_json(ticket), Path(os.environ[SESSION_MARK]))
        return io.NodeOutput()


def _kept_inputs() -> list[Any]:
    """Inputs that are never asked for: what they link to stays in ComfyUI's cache."""
    return [io.AnyType.Input(f"kept_{i}", optional=True, lazy=True) for i in range(MAX_KEPT)]


def _check_place() -> None:
    if not is_worker():
        raise InputError("Fleet Follow runs on workers only; ComfyFleet places it by itself.")
