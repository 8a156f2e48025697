"""What a prompt elsewhere has done so far: its history, should it be stopped before its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from comfyfleet.comfy.queue import Ending, Item


class Record:
    """Of the attempt that is shown. What makes no sense in a worker's events is passed over."""

    def __init__(self, item: Item) -> None:
        self._prompt_id, self._prompt = item[1], item[2]
        self._begin()

    def _begin(self) -> None:
        self._messages: list[list[Any]] = []
        self._outputs: dict[str, Any] = {}
        self._cached: set[str] = set()
        #: Node id -> what ComfyUI has told of it last.
        self._nodes: dict[str, Mapping[str, Any]] = {}
        self._node_id: str | None = None

    def take(self, event: str | int, data: Any) -> None:
        """An event, with the master's names of files."""
        if not isinstance(data, Mapping):
            return
        if event == "execution_start":
            self._begin()
        if event in ("execution_start", "execution_cached"):
            self._messages.append([event, data])
            cached = data.get("nodes")
            self._cached.update(map(str, cached if isinstance(cached, list) else ()))
        elif event == "executing":
            self._node_id = str(data.get("node"))
        elif event == "executed" and isinstance(data.get("output"), Mapping):
            self._outputs[str(data.get("node"))] = data["output"]
        elif event == "progress_state":
            states = data.get("nodes")
            known = states.items() if isinstance(states, Mapping) else ()
            self._nodes |= {key: each for key, each in known if isinstance(each, Mapping)}

    def interrupted(self) -> Ending:
        """The history of a prompt that was stopped now, as ComfyUI writes it."""
        node_id = None if self._node_id is None else self._real_id(self._node_id)
        node_type = self._prompt.get(node_id or "", {}).get("class_type")
        return self._ending("execution_interrupted", {"node_id": node_id, "node_type": node_type})

    def failed(self, error: BaseException) -> Ending:
        """The history of a prompt that failed by an error that no node has raised."""
        told: dict[str, Any] = {
            "node_id": None,
            "node_type": None,
            "exception_message": str(error),
            "exception_type": type(error).__name__,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
        }
        return self._ending("execution_error", told)

    def _ending(self, event: str, told: Mapping[str, Any]) -> Ending:
        executed = [key for key in self._nodes if self._is_executed(key)]
        last = {"prompt_id": self._prompt_id, **told, "executed": executed}
        last["timestamp"] = int(time.time() * 1000)
        meta = {node_id: self._meta(node_id) for node_id in self._outputs}
        return Ending(
            {"outputs": dict(self._outputs), "meta": meta},
            {
                "status_str": "error",
                "completed": False,
                "messages": [*self._messages, [event, last]],
            },
        )

    def _is_executed(self, node_id: str) -> bool:
        return self._nodes[node_id].get("state") == "finished" and node_id not in self._cached

    def _real_id(self, node_id: str) -> str:
        return str(self._nodes.get(node_id, {}).get("real_node_id", node_id))

    def _meta(self, node_id: str) -> dict[str, Any]:
        told = self._nodes.get(node_id, {})
        return {
            "node_id": node_id,
            "display_node": told.get("display_node_id", node_id),
            "parent_node": told.get("parent_node_id"),
            "real_node_id": self._real_id(node_id),
        }
