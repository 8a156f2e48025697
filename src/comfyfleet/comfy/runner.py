"""Run units on the ComfyUI of this very process, through its HTTP API, and gather the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths

from comfyfleet.client.attempt import Attempt, throttled
from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.names import named_files
from comfyfleet.client.pictures import ATTEMPT, RETURN_NODE
from comfyfleet.comfy import returns, shipped
from comfyfleet.comfy.inventory import is_output
from comfyfleet.comfy.mirror import MirrorRunner, Tell
from comfyfleet.comfy.values import pack
from comfyfleet.graph import node_digests, with_input
from comfyfleet.work import Mirrored, OutputFile, Packed, Prompt, Result


class Runner:
    """Runs one unit at a time. Made, and used, on ComfyUI's event loop.

    The output folder is this worker's own, and what is saved leaves it.
    """

    def __init__(self, url: str) -> None:
        self._outputs_seen: set[str] = set()
        # No limit on time: units take as long as they take.
        self._client = ComfyClient(Link(Endpoint(url=url)))
        self._mirror = MirrorRunner(self._client)
        self._attempt = Attempt(self._client)

    async def run(
        self,
        prompt: Mapping[str, Any],
        prompt_id: str,
        on_progress: Callable[[float], None],
        values: Mapping[str, Packed],
    ) -> Result:
        """Run a prompt, with what was shipped for it, to its end; raises as ComfyClient.run."""
        shipped.hold(prompt_id, values)
        keyed = self._with_key(prompt, prompt_id)
        work = self._client.run(keyed, prompt_id, throttled(on_progress))
        try:
            outputs = (await self._attempt.end_of(work, prompt_id))["outputs"]
        finally:
            shipped.drop(prompt_id)
            returned = returns.take(prompt_id)
        packed = None if returned is None else pack(returned, "the result")
        return Result(values=packed, files=tuple(_take_files(outputs)))

    async def mirror(
        self, prompt: Prompt, asked: Mirrored, on_progress: Callable[[float], None], tell: Tell
    ) -> Result:
        """Run a client's whole prompt and tell all of it; raises as ``run`` does."""
        told = self._mirror.run(prompt, asked, throttled(on_progress), tell)
        await self._attempt.end_of(told, asked.prompt_id)
        return Result(values=None)

    async def free(self, request: Mapping[str, Any]) -> None:
        """Unload models, or free memory, as ComfyUI's /free understands it."""
        await self._client.free(request)

    async def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt."""
        await self._attempt.interrupt(prompt_id)

    def _with_key(self, prompt: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Name the attempt in output nodes that must run although ComfyUI may have them cached.

        These are our return node, which returns under that key, and any whose equal has run here
        before: its files have been taken. Such nodes ignore the input, as ComfyUI passes on only
        what a class declares. All others stay as they are, and so does what they save.
        """
        digests = node_digests(prompt)
        again = {key for key, node in prompt.items() if node["class_type"] == RETURN_NODE}
        saving = {key for key, node in prompt.items() if is_output(node["class_type"])} - again
        again |= {node_id for node_id in saving if digests[node_id] in self._outputs_seen}
        self._outputs_seen |= {digests[node_id] for node_id in saving}
        return {
            node_id: with_input(node, ATTEMPT, key) if node_id in again else node
            for node_id, node in prompt.items()
        }


def _take_files(outputs: Mapping[str, Mapping[str, Any]]) -> Iterator[OutputFile]:
    """Read and remove what output nodes saved; previews only if nothing else was saved."""
    saved = list(named_files(outputs))
    kinds = {entry.get("type") for _, entry in saved}
    wanted = "output" if "output" in kinds else "temp"
    for node_id, entry in saved:
        if entry.get("type") == wanted:
            yield _take_file(node_id, entry)


def _take_file(node_id: str, entry: Mapping[str, Any]) -> OutputFile:
    base = Path(folder_paths.get_directory_by_type(entry["type"]))
    path = base / entry.get("subfolder", "") / entry["filename"]
    data = path.read_bytes()
    path.unlink()
    return OutputFile(node_id=node_id, name=path.relative_to(base).as_posix(), data=data)
