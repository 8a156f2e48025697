"""A ComfyUI with workers and tiny models, and what it takes to compare many devices with one."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comfyfleet.fleet import loans
from comfyfleet.fleet.registry import FleetRecord, read_records
from tests.parallel_bed import PACK
from tests.parallel_bed.events import Event, Recording, latent, record
from tests.parallel_bed.prompts import Patch, Prompt, alone
from tests.support import Master, lives, wait_until

#: How far a latent may be from that of one device: floating point, no more.
TOLERANCE = 1e-5
#: What ComfyUI logs when it makes a model from a file.
LOADED = "model weight dtype"

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """A prompt that ran with Parallel Model."""

    latent: torch.Tensor
    recording: Recording
    #: The relative error against one device.
    error: float

    @property
    def samplings(self) -> list[str]:
        """How each sampling was computed, as the node told it: "4 as ulysses 3"."""
        return [found[1] for text in self.texts if (found := _SAMPLING.match(text))]

    @property
    def warnings(self) -> str:
        """All else that the node told."""
        return "\n".join(text for text in self.texts if not _SAMPLING.match(text))

    @property
    def texts(self) -> list[str]:
        return self.recording.texts


#: Seconds of silence that only a hang reaches.
_LONG_S = 120.0
_SAMPLING = re.compile(r"Last sampling: (.*); devices: ")


class Bed:
    """A master, and the latents that one device gives."""

    def __init__(self, comfyui: Path, base: Path, models: Path, *, workers: str) -> None:
        base.mkdir(parents=True, exist_ok=True)
        (base / "models").symlink_to(models)
        self.order = base / "order.json"
        self._known: dict[str, Recording] = {}
        self.master = Master(comfyui, base, workers=workers, packs={"parallel_bed": PACK})
        self._bear_silence(_LONG_S)

    def close(self) -> None:
        self.master.close()

    def alone(self, prompt: Mapping[str, Any]) -> Recording:
        """What one device does with a prompt; computed once."""
        plain = alone(prompt)
        key = json.dumps(plain, sort_keys=True)
        if key not in self._known:
            self._known[key] = record(self.master, plain)
        return self._known[key]

    def run(self, prompt: Prompt, *, on_event: OnEvent | None = None) -> Outcome:
        """Run a prompt; its latent and how far it is from that of one device."""
        expected = latent(self.master, self.alone(prompt).entry)
        assert expected.isfinite().all() and 0.1 < expected.std() < 100
        recording = record(self.master, prompt, on_event=on_event)
        found = latent(self.master, recording.entry)
        assert found.shape == expected.shape
        error = float((found - expected).norm() / expected.norm())
        return Outcome(latent=found, recording=recording, error=error)

    def check(self, prompt: Prompt, *ways: str) -> Outcome:
        """Run a prompt, whose samplings must be computed so, without a warning, as by one."""
        found = self.run(prompt)
        assert found.samplings == list(ways), found.texts
        assert not found.warnings, found.warnings
        assert found.error <= TOLERANCE, (found.error, found.texts)
        return found

    def check_warned(self, prompt: Prompt, warning: str, *ways: str) -> Outcome:
        """Run a prompt, of which one device computes a part, as the node says."""
        found = self.run(prompt)
        assert re.search(warning, found.warnings), found.texts
        assert found.samplings == list(ways), found.texts
        assert found.error <= TOLERANCE, (found.error, found.texts)
        return found

    # Workers.

    def fleet(self) -> FleetRecord:
        """The record of the fleet that lives."""
        found: list[FleetRecord] = wait_until(self._fleets, "a fleet")
        return found[-1]

    def _fleets(self) -> list[FleetRecord]:
        pid = self.master.process.pid
        return [record for record in read_records() if record.owner_pid == pid]

    @property
    def folder(self) -> Path:
        """The folder of the fleet that lives."""
        return Path(self.fleet().folder)

    def pid(self, worker: str) -> int:
        return next(info.pid for info in self.fleet().workers if info.id == worker)

    def living(self) -> list[str]:
        """The workers whose processes live; none if there is no fleet."""
        fleets = self._fleets()
        workers = fleets[-1].workers if fleets else ()
        return [info.id for info in workers if lives(info.pid)]

    @contextmanager
    def closed(self) -> Iterator[None]:
        """No worker comes while this lasts: one that is lost would be there again in seconds."""
        self._closed.touch()
        try:
            yield
        finally:
            self._closed.unlink(missing_ok=True)

    @property
    def _closed(self) -> Path:
        return self.master.base / "closed"

    def wait_for_end(self, *workers: str) -> None:
        """Until the fleet knows that these are gone."""

        def known() -> set[str]:
            return {info.id for info in self.fleet().workers}

        wait_until(lambda: not known() & {*workers}, f"the end of {workers}")

    def mend(self) -> None:
        """See that all workers are there again, as their owner would."""
        base = "/comfyfleet/v1"
        self._closed.unlink(missing_ok=True)
        for worker in self.master.get(f"{base}/status")["workers"]:
            action = "enable" if worker["id"] in self.living() else "restart"
            self.master.post(f"{base}/workers/{worker['id']}/{action}", {})

        def idle() -> bool:
            workers = self.master.get(f"{base}/status")["workers"]
            there = len(self.living()) == len(workers)  # a death may not have been noticed
            return there and all(worker["state"] == "idle" for worker in workers)

        wait_until(idle, "the workers to be idle")

    def log_of(self, worker: str) -> str:
        """A worker's log; ComfyUI's of the master for an empty name."""
        if not worker:
            return self.master.log.read_text(errors="replace")
        path = next(info.log_file for info in self.fleet().workers if info.id == worker)
        return Path(path).read_text(errors="replace")

    def loads(self) -> dict[str, int]:
        """How many models each worker has loaded from a file so far."""
        return {info.id: self.log_of(info.id).count(LOADED) for info in self.fleet().workers}

    # Faults.

    @contextmanager
    def impatient(self, worker: str) -> Iterator[None]:
        """This one is given up as soon as for users, if silent: others are on a busy machine."""
        self._bear_silence(loans._PATIENCE_S, worker)
        try:
            yield
        finally:
            self._bear_silence(_LONG_S)

    def _bear_silence(self, seconds: float, worker: str = "") -> None:
        self.master.post("/test/patience", {"seconds": seconds, "worker": worker})

    @property
    def trap(self) -> Patch:
        """The node in which processes fail as ordered."""
        return "TestTrap", {"order": str(self.order)}

    @contextmanager
    def ordered(self, what: str, *who: str, after: int = 0, place: str = "last") -> Iterator[None]:
        """While this lasts, these processes do it before their first or last block.

        They do it once, when they have been there ``after`` times.
        """
        order = {"id": uuid.uuid4().hex, "what": what, "who": who, "after": after, "place": place}
        self.order.write_text(json.dumps(order))
        try:
            yield
        finally:
            self.withdraw()

    def withdraw(self) -> None:
        """Nothing is ordered any more; who waits goes on."""
        self.order.unlink(missing_ok=True)


def tokens_in(log: str, worker: str) -> list[tuple[int, int]]:
    """Batch and tokens at each call of the trap that a process logged."""
    found = re.findall(rf"trap: {worker} has (\d+) x (\d+) tokens", log)
    return [(int(batch), int(tokens)) for batch, tokens in found]
