"""What a real master with two workers tells of its fleet: routes, the stream, commands."""

from __future__ import annotations

import json
import threading
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.queue_bed.bed import PACK, Gates, fault, share
from tests.support import Master, run_command, wait_until

pytestmark = pytest.mark.cluster

BASE = "/comfyfleet/v1"
TOKEN = "comfy-org-token-4711"


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    base = tmp_path_factory.mktemp("insight")
    running = Master(comfyui, base, workers="cpu,cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture
def shared(server: Master) -> Master:
    """Only the workers run prompts."""
    share(server)
    return server


class Reader:
    """Reads the stream as a browser's EventSource does, in a thread."""

    def __init__(self, master: Master) -> None:
        self.events: list[dict[str, Any]] = []
        self._answer = master.open(f"{BASE}/events")
        assert self._answer.headers["Content-Type"] == "text/event-stream"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        event: dict[str, Any] = {}
        for line in self._answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name in ("event", "data"):
                event[name] = json.loads(value) if name == "data" else value
            elif not name and event:
                self.events.append(event)
                event = {}

    def named(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in list(self.events) if event["event"] == kind]

    def wait(self, kind: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_until(lambda: self.named(kind), f"event {kind}")
        return found[0]


def status(master: Master) -> dict[str, Any]:
    found: dict[str, Any] = master.get(f"{BASE}/status")
    return found


def workers(master: Master) -> dict[str, dict[str, Any]]:
    return {worker["id"]: worker for worker in status(master)["workers"]}


def memory_of(master: Master, worker: str) -> dict[str, int]:
    """Known as soon as the worker has answered in time."""

    def found() -> dict[str, int] | None:
        memory: dict[str, int] = workers(master)[worker]["memory"]
        return memory if memory["device_total_bytes"] else None

    known: dict[str, int] = wait_until(found, f"the memory of {worker}")
    return known


def text(master: Master, path: str) -> str:
    with master.open(f"{BASE}{path}") as answer:
        return str(answer.read().decode())


def refused(master: Master, path: str, code: int) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        text(master, path)
    assert caught.value.code == code
    return str(json.load(caught.value)["error"])


def command(master: Master, *args: str) -> str:
    answer = run_command(*args, "--url", f"http://127.0.0.1:{master.port}")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def queue_with_token(master: Master, prompt: dict[str, Any]) -> str:
    """As the browser of somebody who is logged in at a paid service."""
    extra = {"auth_token_comfy_org": TOKEN, "client_id": uuid.uuid4().hex}
    return str(master.post("/prompt", {"prompt": prompt, "extra_data": extra})["prompt_id"])


def test_before_there_is_a_fleet(server: Master) -> None:
    found = status(server)
    assert (found["fleet"], found["workers"], found["runs"]) == ("none", [], [])
    assert found["sharing"] == {"on": False, "master_computes": False, "note": ""}
    assert "comfyfleet_up 0.0" in text(server, "/metrics")
    assert "never started" in refused(server, "/workers/cpu-0/log", 404)
    assert Reader(server).wait("status")["fleet"] == "none"


def test_a_prompt_from_its_queue_to_its_end(shared: Master, gates: Gates) -> None:
    """Status, stream, metrics and the frame of ``top`` while it runs, and afterwards."""
    reader = Reader(shared)
    begun = reader.wait("status")
    assert [worker["state"] for worker in begun["workers"]] == ["idle", "idle"]
    prompt_id = queue_with_token(shared, gates.prompt("one"))
    (name,) = gates.wait("one")

    busy = workers(shared)[name]
    assert (busy["state"], busy["task"]["prompt_id"], busy["device"]) == ("busy", prompt_id, "cpu")
    assert wait_until(lambda: workers(shared)[name]["task"]["node"] == "2", "the node")
    memory = memory_of(shared, name)
    assert memory["rss_bytes"] > 50_000_000
    assert 0 < memory["device_free_bytes"] <= memory["device_total_bytes"]
    frame = command(shared, "top", "--once")
    assert name in frame and "busy" in frame and prompt_id[:8] in frame
    (run,) = status(shared)["runs"]
    assert (run["outcome"], run["lane"], run["prompt_id"]) == ("running", "queue", prompt_id)
    assert [attempt["worker"] for attempt in run["attempts"]] == [name]

    gates.open("one")
    shared.finish(prompt_id)
    reader.wait("run.ended")
    order = [event["event"] for event in reader.events if not event["event"].startswith("worker")]
    told = [kind for kind in order if kind != "unit.progress"]
    assert told == ["status", "run.submitted", "unit.started", "unit.ended", "run.ended"]
    numbers = [event["data"]["seq"] for event in reader.events]
    assert numbers == sorted(set(numbers))
    # The worker is seen as idle after its run is told of as ended.
    wait_until(lambda: workers(shared)[name]["state"] == "idle", "the worker to be idle")
    done = workers(shared)[name]
    assert (done["task"], done["units_done"]) == (None, 1)
    assert status(shared)["totals"]["prompts_done"] == 1
    families = list(text_string_to_metric_families(text(shared, "/metrics")))
    units = {
        (sample.labels["worker"], sample.labels["end"]): sample.value
        for family in families
        if family.name == "comfyfleet_worker_units"
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert units[name, "done"] == 1


def test_a_failure_is_told_and_a_token_never(shared: Master) -> None:
    reader = Reader(shared)
    reader.wait("status")
    queue_with_token(shared, fault("all"))
    ended = reader.wait("run.ended")["data"]
    assert (ended["outcome"], bool(ended["error"])) == ("failed", True)
    found = workers(shared)
    assert [worker["units_failed"] for worker in found.values()] == [1, 1]
    assert all(worker["last_error"]["message"] for worker in found.values())
    everything = [json.dumps(status(shared)), json.dumps(reader.events), text(shared, "/metrics")]
    everything += [text(shared, f"/workers/{name}/log?lines=10000") for name in found]
    everything.append(command(shared, "top", "--once"))
    assert not any(TOKEN in part for part in everything)


def test_the_master_is_a_worker_of_its_own_queue(server: Master) -> None:
    share(server, master_computes=True)
    own = wait_until(lambda: workers(server).get("master"), "the master")
    assert (own["device"], own["pid"]) == ("cpu", server.process.pid)
    assert memory_of(server, "master")["rss_bytes"]


def test_logs_are_kept_and_read_by_route_and_command(shared: Master) -> None:
    kept = shared.base / "user" / "comfyfleet" / "logs" / "cpu-0.log"
    assert kept.stat().st_mode & 0o777 == 0o600
    found = shared.get(f"{BASE}/workers/cpu-0/log?lines=5")
    assert (found["worker"], found["file"], len(found["lines"])) == ("cpu-0", str(kept), 5)
    whole = command(shared, "logs", "cpu-0", "--lines", "10000")
    assert "worker cpu-0 on cpu" in whole
    assert "choose cpu-0, cpu-1" in refused(shared, "/workers/cpu-7/log", 404)
    for lines in ("0", "-1", "many", "10001", "99999999999"):
        assert "lines is" in refused(shared, f"/workers/cpu-0/log?lines={lines}", 400)


def test_what_the_commands_do_to_workers(shared: Master) -> None:
    assert "cpu-0" in command(shared, "worker", "cpu-0", "disable")
    state = wait_until(lambda: workers(shared)["cpu-0"]["state"] == "paused", "the pause")
    assert state and "owner" in workers(shared)["cpu-0"]["reason"]
    command(shared, "worker", "all", "enable")
    wait_until(lambda: workers(shared)["cpu-0"]["state"] == "idle", "the end of the pause")
    reader = Reader(shared)
    reader.wait("status")
    command(shared, "worker", "cpu-1", "restart")
    wait_until(lambda: workers(shared)["cpu-1"]["restarts"] == 1, "the restart", 60)

    def states() -> list[str]:
        """Of that one: the master may be leaving its seat just now, as the test before wants it."""
        changes = [change["data"] for change in reader.named("worker.changed")]
        return [change["state"] for change in changes if change["worker"] == "cpu-1"]

    wait_until(lambda: states()[-1:] == ["idle"], "word of its return")
    assert states() == ["restarting", "idle"]
    unknown = run_command("worker", "cpu-7", "free", "--url", f"http://127.0.0.1:{shared.port}")
    assert (unknown.returncode, "cpu-0, cpu-1" in unknown.stderr) == (2, True)


def test_the_command_shares_the_queue(server: Master) -> None:
    assert "is not shared" in command(server, "share", "off")
    assert not status(server)["sharing"]["on"]
    assert "the master computes" in command(server, "share", "on", "--master")
    assert status(server)["sharing"] == {"on": True, "master_computes": True, "note": ""}
    assert "does not compute" in command(server, "share", "on", "--no-master")
