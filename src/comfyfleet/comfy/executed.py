"""What nodes of this process put out, whether or not a client listens."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import execution

logger = logging.getLogger(__name__)

#: Of a prompt and its node, with the node's output for clients.
Tell = Callable[[str, str, Mapping[str, Any]], None]

_NEEDED = frozenset({"prompt_id", "current_item", "executed", "ui_outputs"})


def watch_executed(tell: Tell) -> None:
    """Let ``tell`` know of each node that has been executed, and was not cached, before the next.

    ComfyUI sends that to the prompt's client only, and nothing where there is none.
    """
    run = execution.execute
    shape = inspect.signature(run)
    if not _NEEDED.issubset(shape.parameters):
        logger.warning("another pack runs the nodes: what they save here is not written down")
        return

    @functools.wraps(run)
    async def watched(*args: Any, **options: Any) -> Any:
        answer = await run(*args, **options)
        try:
            _tell(tell, shape.bind(*args, **options).arguments)
        except Exception:  # of our own: the node has done its work
            logger.exception("what a node has saved could not be written down")
        return answer

    execution.execute = watched


def _tell(tell: Tell, asked: Mapping[str, Any]) -> None:
    node_id = asked["current_item"]
    if node_id in asked["executed"] and node_id in asked["ui_outputs"]:
        tell(str(asked["prompt_id"]), str(node_id), asked["ui_outputs"][node_id]["output"])
