"""A ComfyUI known by its address as a worker: runs units there and brings the results home.

It may be a plain ComfyUI, of which nothing is asked but its own routes: then results are pictures
in 8 bits. With this extension there, any value comes as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfyfleet.client.attempt import Attempt, throttled
from comfyfleet.client.comfyui import ComfyClient, Message
from comfyfleet.client.forms import require_forms
from comfyfleet.client.greeting import (
    Greeting,
    ask_stats,
    clock_off_by,
    first_device,
    greeting,
    memory_of,
)
from comfyfleet.client.guest import Guest
from comfyfleet.client.inventory import Inventory, Need, in_words
from comfyfleet.client.kept import CacheWatch, Kept, Source
from comfyfleet.client.limits import room
from comfyfleet.client.link import Link
from comfyfleet.client.names import key_of, translated
from comfyfleet.client.pictures import (
    ATTEMPT,
    RETURN_NODE,
    entries,
    fetch,
    fetch_files,
    fetch_values,
    unreturnable,
    with_previews,
)
from comfyfleet.client.setup import Setup
from comfyfleet.client.texts import size
from comfyfleet.client.uploads import Uploads
from comfyfleet.client.weights import weights_bytes
from comfyfleet.errors import Unfit, Unreachable, WorkflowError
from comfyfleet.graph import links_of, with_input, with_literals
from comfyfleet.work import HISTORY, Mirrored, Packed, Prompt, Result, SavedFile, Told

#: A unit that lacks something lets us look again at what is there, at most this often.
_LOOK_AGAIN_S = 2.0

#: Of what a client sends with its prompt: the workflow, and how previews are made. The rest may be
#: its login.
_SHARED = ("extra_pnginfo", "preview_method")
#: ComfyUI's own events of a prompt, and its previews: a picture, one with its origin, a text.
_EVENTS = frozenset(
    {
        *("execution_start", "execution_cached", "executing", "executed", "progress"),
        *("progress_state", "execution_success", "execution_error", "execution_interrupted"),
        *(1, 3, 4),
    }
)
#: What a file takes besides its content.
_FILE_BYTES = 4096

Tell = Callable[[Told], None]
OnProgress = Callable[[float], None]


class RemoteRunner:
    """Runs one unit at a time. Made, and used, on one event loop."""

    def __init__(
        self,
        link: Link,
        folders: Mapping[str, Path],
        *,
        models: Sequence[Path] = (),
        own: Setup | None = None,
    ) -> None:
        """``folders``: where the files lie that prompts name (input, output, temp).

        ``models`` are the owner's folders of models, ``own`` is the owner's ComfyUI.
        """
        self._link = link
        self._client = ComfyClient(link)
        self._attempt = Attempt(self._client)
        self._guest = Guest(link)
        self._uploads = Uploads(link, self._guest, folders)
        self._kept = Kept()
        self._has_extension = False
        self._inventory: Inventory | None = None
        self._described_at = 0.0
        self._models = models
        self._own = own or Setup()
        #: The last prompt that ended there.
        self._last = ""
        #: Bytes of the models there, where it says.
        self._sizes: dict[str, int] = {}
        #: Bytes of its memory and its device's together; 0: not known.
        self._memory = 0

    @property
    def inventory(self) -> Inventory:
        """What can run there; known after ``greet``."""
        assert self._inventory is not None
        return self._inventory

    async def greet(self) -> Greeting:
        """See who is there. Raises Unreachable, or InputError if it does not let us in."""
        stats = await ask_stats(self._link)
        hello = await self._guest.hello()
        self._has_extension = hello is not None
        await self._describe()
        self._memory = memory_of(stats)
        classes = frozenset(self.inventory.classes)
        return greeting(stats, hello, classes, await clock_off_by(self._link), self._own)

    async def _describe(self) -> None:
        """Ask what can run there now."""
        _, described = await self._link.ask("GET", "/object_info")
        self._inventory = Inventory(self._link.url, described)
        self._sizes = await self._guest.model_sizes() if self._has_extension else {}
        self._described_at = time.monotonic()

    def lacks(self, prompt: Prompt) -> list[str]:
        """What is missing there to run a prompt, as far as is known without sending its files."""
        bare = prompt if self._has_extension else with_literals(prompt)
        return [str(each) for each in self._lacking(bare, {})]

    async def memory(self) -> tuple[int, int]:
        """Free and total bytes of its device. Raises Unreachable if it does not answer."""
        _, stats = await self._link.ask("GET", "/system_stats")
        device = first_device(stats)
        return size(device.get("vram_free")), size(device.get("vram_total"))

    async def run(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: OnProgress,
        values: Mapping[str, Packed],
    ) -> Result:
        """Run a unit to its end; raises as ComfyClient.run, and Unfit before anything begins."""
        whole = self._run(prompt, prompt_id, on_progress, values)
        return await self._attempt.end_of(whole, prompt_id)

    async def _run(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: OnProgress,
        values: Mapping[str, Packed],
    ) -> Result:
        ready = await self._prepared(prompt, values)
        stands: dict[str, str] = {}
        bare, watch = ready, CacheWatch()
        if self._has_extension:
            ready = _with_key(ready, prompt_id)
            if values:
                await self._guest.ship(prompt_id, values)
        else:
            ready, stands = with_previews(ready)
        try:
            work = self._client.run(ready, prompt_id, throttled(on_progress), on_message=watch)
            outputs = (await work)["outputs"]
            self._last = prompt_id
            known = self._kept.find(bare, watch.cached)
            if known is not None:
                return known
            returned = await self._returned(ready, prompt_id, outputs, stands)
        finally:
            if self._has_extension:
                await self._guest.forget(prompt_id)
        files = await fetch_files(self._link, outputs, list(stands))
        returns = any(node["class_type"] == RETURN_NODE for node in prompt.values())
        if not returns and not files:
            raise Unfit(f"{self._link.url} saved nothing that could come home")
        found = Result(values=returned, files=tuple(files))
        self._kept.keep(bare, found)
        return found

    async def mirror(
        self, prompt: Prompt, asked: Mirrored, on_progress: OnProgress, tell: Tell
    ) -> Result:
        """Run a client's whole prompt and tell all of it; raises as ``run`` does."""
        whole = self._mirror(prompt, asked, on_progress, tell)
        return await self._attempt.end_of(whole, asked.prompt_id)

    async def _mirror(
        self, prompt: Prompt, asked: Mirrored, on_progress: OnProgress, tell: Tell
    ) -> Result:
        ready = await self._prepared(prompt, {})
        lacking = [f"output node {node}" for node in asked.outputs if node not in ready]
        if lacking:
            raise Unfit(f"{self._link.url} cannot run {', '.join(lacking)}")
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        source = Source(ready)
        teller = asyncio.ensure_future(self._tell_all(told, tell, source))
        data = {key: asked.extra_data[key] for key in _SHARED if key in asked.extra_data}
        work = self._client.run(
            ready,
            asked.prompt_id,
            throttled(on_progress),
            asked=replace(asked, extra_data=data),
            on_message=lambda message: told.put_nowait(message) if _is_own(message) else None,
        )
        try:
            await work
            self._last = asked.prompt_id
        except WorkflowError as error:
            if _is_uuid(asked.prompt_id):
                raise
            # A client may choose any id here, and a ComfyUI of 2026 takes UUIDs alone.
            raise Unfit(f"{self._link.url} refuses the prompt: {error}") from None
        finally:
            told.put_nowait(None)
            await teller
            entry = await self._client.history(asked.prompt_id)
            if entry is not None:
                tell(Told(HISTORY, _record(entry, asked.prompt_id), ()))
        return Result(values=None)

    async def is_anew(self) -> bool:
        """Has it lost the last prompt? Then it was started anew since. Raises Unreachable.

        It says True once; and also where somebody has cleared its history.
        """
        if not self._last or await self._client.has_record(self._last):
            return False
        self._last = ""
        return True

    def doubt(self) -> None:
        """It may have been started anew: what it says to be cached may be another's."""
        self._kept.clear()

    async def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt."""
        await self._attempt.interrupt(prompt_id)

    async def free(self, request: Mapping[str, Any]) -> None:
        """Unload models, or free memory, as ComfyUI's /free understands it."""
        await self._client.free(request)

    async def _prepared(self, prompt: Prompt, values: Mapping[str, Packed]) -> Prompt:
        """The prompt as it can run there, its files sent. Raises Unfit if it cannot."""
        bare: Prompt = prompt if self._has_extension else with_literals(prompt)
        await self._require(lambda: self._lacking(bare, values))
        sent, names = await self._uploads.send(bare, in_pieces=self._has_extension)
        own = _without_returns(sent)
        await self._require(lambda: self.inventory.missing(self.inventory.adapted(own), names))
        return self.inventory.adapted(sent)

    async def _require(self, lacking: Callable[[], Sequence[Need | str]]) -> None:
        """Raises Unfit with what is lacking, after another look: models are copied there."""
        if lacking() and time.monotonic() - self._described_at > _LOOK_AGAIN_S:
            await self._describe()
        found = lacking()
        if found:
            raise Unfit(f"{self._link.url} lacks {in_words(found)}")

    def missing(self, prompt: Prompt, sent: frozenset[str] = frozenset()) -> list[Need]:
        """Node classes and choices that are missing there for a whole prompt, as data."""
        plain = prompt if self._has_extension else with_literals(prompt)
        return self.inventory.missing(self.inventory.adapted(plain), sent)

    def _lacking(self, prompt: Prompt, values: Mapping[str, Packed]) -> list[Need | str]:
        """What no upload mends."""
        own = prompt if self._has_extension else _without_returns(prompt)
        missing = {node["class_type"] for node in own.values()} - set(self.inventory.classes)
        found: list[Need | str] = [Need(name) for name in sorted(missing)]
        if not self._has_extension and not missing:
            found += unreturnable(prompt, self.inventory)
            found += ["this extension, for values that come with the unit"] if values else []
        found += [f"your login, which is not sent, for {name}" for name in self._paid(prompt)]
        needed = weights_bytes(prompt, self._models, self._sizes)
        if 0 < self._memory < needed:
            has = f"it has {self._memory / 1e9:.1f} GB"
            found.append(f"memory for models of {needed / 1e9:.1f} GB ({has})")
        return found

    def _paid(self, prompt: Prompt) -> list[str]:
        """Classes that ask a service on the network with their user's login."""
        return sorted(
            {name for node in prompt.values() if self.inventory.is_paid(name := node["class_type"])}
        )

    async def _returned(
        self, prompt: Prompt, prompt_id: str, outputs: Mapping[str, Any], stands: Mapping[str, str]
    ) -> Packed | None:
        if not self._has_extension:
            return await fetch_values(self._link, outputs, stands)
        if all(node["class_type"] != RETURN_NODE for node in prompt.values()):
            return None
        found = await self._guest.fetch(prompt_id)
        if found is not None:  # else something upstream has blocked it
            _require_all(found, prompt, self._link.url)
            require_forms(found, self._link.url)
        return found

    async def _tell_all(
        self, told: asyncio.Queue[Message | None], tell: Tell, source: Source
    ) -> None:
        """In their order, with the files that they name."""
        left = room()
        while (message := await told.get()) is not None:
            source.hear(message)
            event, data = message
            files: list[SavedFile] = []
            if event == "executed" and isinstance(data.get("output"), Mapping):
                for _, entry in entries({"": data["output"]}):
                    files.append(await self._saved(data.get("node"), entry, left, source))
                    left -= len(files[-1].data or b"") + _FILE_BYTES
                data = {**data, "output": translated(data["output"])}
            tell(Told(event, data, tuple(files)))

    async def _saved(
        self, node_id: Any, entry: Mapping[str, Any], max_bytes: int, source: Source
    ) -> SavedFile:
        """A file of a node; one that it saved for an earlier prompt is here."""
        key = source.key_of(node_id, key_of(entry))
        known = self._kept.find_file(key) if source.is_cached(node_id) else None
        file = known or await self._file(entry, max_bytes)
        if key:
            self._kept.keep_file(key, file)
        return file

    async def _file(self, entry: Mapping[str, Any], max_bytes: int) -> SavedFile:
        kind, folder, name = key_of(entry)
        data = await fetch(self._link, entry, max_bytes)
        content = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
        return SavedFile(
            kind=kind,
            subfolder=folder,
            name=name,
            data=data,
            stamp=(content, len(data)),
            foreign=True,
        )


def _with_key(prompt: Prompt, key: str) -> Prompt:
    return {
        node_id: with_input(node, ATTEMPT, key) if node["class_type"] == RETURN_NODE else node
        for node_id, node in prompt.items()
    }


def _without_returns(prompt: Prompt) -> Prompt:
    return {key: node for key, node in prompt.items() if node["class_type"] != RETURN_NODE}


def _require_all(found: Packed, prompt: Prompt, url: str) -> None:
    """Raises Unreachable unless each input of the return node came back as a list, and no other."""
    returns = (node for node in prompt.values() if node["class_type"] == RETURN_NODE)
    wanted = {name for node in returns for name in links_of(node)}
    skeleton = found.skeleton
    if (
        not isinstance(skeleton, dict)
        or skeleton.keys() != wanted
        or not all(isinstance(each, list) for each in skeleton.values())
    ):
        raise Unreachable(url, f"it did not return {', '.join(sorted(wanted))}")


def _is_uuid(prompt_id: str) -> bool:
    try:
        return str(uuid.UUID(prompt_id)) == prompt_id
    except ValueError:
        return False


def _is_own(message: Message) -> bool:
    """Packs of others tell a browser what they like; only ComfyUI's own events are passed on."""
    return message[0] in _EVENTS


def _record(entry: Mapping[str, Any], prompt_id: str) -> dict[str, Any]:
    """Of a history entry what the owner's ComfyUI keeps."""
    status = entry.get("status") or {}
    messages = [
        [event, data]
        for event, data in status.get("messages", ())
        if event in _EVENTS and data.get("prompt_id") == prompt_id
    ]
    completed = status.get("completed") is True
    told = {"status_str": "success" if completed else "error", "completed": completed}
    meta = entry.get("meta")
    return {
        "outputs": {node_id: translated(each) for node_id, each in entry["outputs"].items()},
        "meta": meta if isinstance(meta, dict) else {},
        "status": {**told, "messages": messages},
    }
