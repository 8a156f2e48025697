"""The prompt that runs right now in this process, as the extension's nodes need it."""

from __future__ import annotations

import copy
import json
from typing import Any

import comfy.model_management
import server
from comfy.cli_args import args
from comfy_execution.utils import get_executing_context

from comfyfleet.client.follower import OUT_OF_MEMORY


def current_prompt_id() -> str:
    """The id of the prompt whose node calls this."""
    context = get_executing_context()
    if context is None:
        raise RuntimeError("current_prompt_id is for code that runs inside a node.")
    return str(context.prompt_id)


def running_prompt() -> dict[str, Any]:
    """The prompt whose node calls this, as it was queued; empty outside of any."""
    context = get_executing_context()
    running, _ = server.PromptServer.instance.prompt_queue.get_current_queue_volatile()
    found = (item[2] for item in running if context and str(item[1]) == context.prompt_id)
    return dict(next(found, {}))


def current_node_id() -> str:
    """The id of the node that calls this; empty outside of any."""
    context = get_executing_context()
    return str(context.node_id) if context else ""


def running_prompt_ids() -> set[str]:
    """Prompts that this ComfyUI runs at this moment."""
    running, _ = server.PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return {str(item[1]) for item in running}


def queued_text() -> str:
    """The prompts that run or wait here, as JSON, for names in them to be found."""
    running, waiting = server.PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return json.dumps([item[2] for item in (*running, *waiting)])


def plain_prompt(dynprompt: Any) -> dict[str, dict[str, Any]]:
    """The prompt with all expanded nodes, as API data: classes and inputs, nothing of a run."""
    nodes = {**dynprompt.original_prompt, **dynprompt.ephemeral_prompt}
    return {
        node_id: {"class_type": node["class_type"], "inputs": copy.deepcopy(dict(node["inputs"]))}
        for node_id, node in nodes.items()
    }


def own_url() -> str:
    """Where this ComfyUI answers, seen from this machine."""
    scheme = "https" if args.tls_keyfile and args.tls_certfile else "http"
    listen = args.listen.split(",")[0].strip()
    host = "127.0.0.1" if listen in ("", "0.0.0.0", "::") else listen
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}"


def raise_if_interrupted() -> None:
    """Raise ComfyUI's own interruption if the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interruption(error: BaseException) -> bool:
    """Is it ComfyUI's own interruption?"""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def is_out_of_memory(error: BaseException) -> bool:
    """Was the memory too small? Said as of an error on a worker, whatever class it has."""
    if is_interruption(error):
        return False
    known = isinstance(error, comfy.model_management.OOM_EXCEPTION)
    return known or OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}") is not None


def free_memory() -> None:
    """Unload all models, as ComfyUI does when the device's memory was too small."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def interrupt() -> None:
    """Interrupt whatever this process computes, as if the user pressed cancel."""
    comfy.model_management.interrupt_current_processing()


def interrupt_if_running(prompt_id: str) -> None:
    """Interrupt this prompt, and never the one after it."""
    queue = server.PromptServer.instance.prompt_queue
    with queue.mutex:  # without which it may end, and the next one begin, in between
        if any(str(item[1]) == prompt_id for item in queue.currently_running.values()):
            interrupt()


def torch_device_id() -> str:
    """The device of this ComfyUI as torch names it, with a number: cuda:0, mps, cpu."""
    device = comfy.model_management.get_torch_device()
    if device.type in ("cpu", "mps") or device.index is not None:
        return str(device)
    return f"{device.type}:0"
