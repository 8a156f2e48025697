"""A model goes from one real ComfyUI to another, over a road that breaks, and is used there."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import torch
from safetensors.torch import save_file

from comfyfleet.api import BASE
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.remote import RemoteRunner
from comfyfleet.errors import Unfit
from comfyfleet.fleet.tokens import write_secret
from comfyfleet.work import Result
from tests.parallel_bed.checkpoints import taesd3
from tests.queue_bed.bed import save
from tests.remote_bed.bed import Prompt
from tests.remote_bed.road import Road, road_to
from tests.support import COMFYFLEET, Master, run_command, wait_until

pytestmark = pytest.mark.cluster

NAME = "small one.safetensors"
MIB = 1 << 20
PART = f"{BASE}/guest/models/part"


def write_vae(path: Path) -> None:
    """A tiny VAE that is 40 MiB large, by something that nobody reads."""
    encoder, decoder = taesd3()
    weights = {f"taesd_encoder.{name}": each for name, each in encoder.items()}
    weights |= {f"taesd_decoder.{name}": each for name, each in decoder.items()}
    weights |= {"vae_scale": torch.tensor(1.5), "vae_shift": torch.tensor(0.06)}
    weights["padding"] = torch.randn(10 * MIB)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)


def decoded() -> Prompt:
    """A picture that needs it."""
    size = {"width": 64, "height": 64, "batch_size": 1}
    return {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": NAME}},
        "2": {"class_type": "EmptySD3LatentImage", "inputs": size},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": save(["3", 0]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models_copied")
    write_vae(found / "studio" / "models" / "vae" / NAME)
    (found / "box" / "models" / "vae").mkdir(parents=True)
    return found


@pytest.fixture(scope="module")
def pair(comfyui: Path, folder: Path, nothing_left: None) -> Iterator[tuple[Master, Master]]:
    """The owner's ComfyUI, which has the model, and another one."""
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(Master, comfyui, folder / name, workers="0") for name in ("studio", "box")
        ]
    studio, box = (each.result() for each in made)
    yield studio, box
    for each in (studio, box):
        if each.process.poll() is None:
            each.close()


@pytest.fixture(scope="module")
def road(pair: tuple[Master, Master]) -> Iterator[Road]:
    """The studio's way to the box, which stands in its fleet.yaml."""
    studio, box = pair
    with road_to(box.port) as found:
        write_secret(studio.folder / "box.token", box.token)
        entry = f"workers:\n- name: box\n  url: {found.url}\n  token_file: box.token\n"
        (studio.folder / "fleet.yaml").write_text(entry)
        yield found


def accept(box: Master, *, yes: bool) -> None:
    file = box.folder / "fleet.yaml"
    file.write_text(f"settings:\n  accept_models: {str(yes).lower()}\n")


def ask(box: Master, method: str, data: bytes | None = None, **given: Any) -> tuple[int, Any]:
    """Status and answer of the worker's own route."""
    fields = {"folder": "vae", "file": "x.sft", "size": 10, "sha256": "0" * 64, **given}
    headers = {**box.headers(BASE), "Content-Type": "application/octet-stream"}
    address = f"{box.url}{PART}?{urlencode(fields)}"
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def check(studio: Master, folder: Path) -> Mapping[str, Any]:
    """What the command says of the worker named box, and the name of each thing it lacks."""
    workflow = folder / "workflow.json"
    workflow.write_text(json.dumps(decoded()))
    said = run_command("models", "check", str(workflow), "--url", studio.url, "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    here, box = found["workers"]
    assert (here["worker"], here["missing"], here["error"]) == ("master", [], "")
    assert [need["name"] for need in found["needs"]] == [NAME]
    return dict(box)


# In this order: the first tests are about a box that accepts nothing.


def test_models_are_not_accepted_unless_their_owner_says_so(
    pair: tuple[Master, Master], road: Road, folder: Path
) -> None:
    studio, box = pair
    missing = check(studio, folder)
    assert (missing["missing"], missing["accepts"], missing["error"]) == ([0], False, "")
    said = run_command("models", "copy", NAME, "--to", "box", "--url", studio.url)
    assert said.returncode == 3
    assert "set accept_models to true there" in " ".join(said.stderr.split())
    assert ask(box, "PUT", b"0123456789", start=0)[0] == 403
    assert not list((box.base / "models").rglob("*.part"))


NOT_TAKEN = {
    "up": {"file": "../../custom_nodes/x.sft"},
    "absolute": {"file": "/tmp/x.sft"},
    "backslashes": {"file": "..\\..\\x.sft"},
    "hidden": {"file": "sub/.x.sft"},
    "a device of Windows": {"file": "aux.sft"},
    "a folder of another name there": {"file": "sub./x.sft"},
    "turned round": {"file": "a\u202etfs.sft"},
    "a pickle": {"file": "x.ckpt"},
    "code": {"file": "x.py", "folder": "custom_nodes"},
    "no model folder": {"folder": "custom_nodes"},
    "an unknown folder": {"folder": "nonsense"},
    "another kind": {"folder": "configs"},
    "no room": {"size": 1 << 44},
    "beyond its end": {"size": 5},
    "an endless name": {"file": "x" * 400 + ".sft"},
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_not_taken(pair: tuple[Master, Master], case: str) -> None:
    _, box = pair
    accept(box, yes=True)
    before = sorted(box.base.rglob("*"))
    status, said = ask(box, "PUT", b"0123456789", start=0, **NOT_TAKEN[case])
    assert status == 400, said
    assert len(said["error"]) < 400
    assert sorted(box.base.rglob("*")) == before


def test_a_link_that_leads_out_of_the_folder_is_not_followed(
    pair: tuple[Master, Master], tmp_path: Path
) -> None:
    _, box = pair
    link = box.base / "models" / "vae" / "out"
    link.symlink_to(tmp_path)
    status, said = ask(box, "PUT", b"0123456789", start=0, file="out/x.sft")
    link.unlink()
    assert (status, "leads out of" in said["error"]) == (400, True)
    assert not list(tmp_path.iterdir())


def test_damaged_content_is_refused(pair: tuple[Master, Master]) -> None:
    _, box = pair
    status, said = ask(box, "PUT", b"0123456789", start=0, sha256=sha256(b"other").hexdigest())
    assert (status, said["state"]) == (200, "checking")
    refused = wait_until(lambda: _error_of(box, sha256(b"other").hexdigest()), "the check")
    assert "x.sft arrived damaged; copy it again" in refused
    assert not list((box.base / "models").rglob("x.sft*"))


def _error_of(box: Master, digest: str) -> str:
    return str(ask(box, "GET", sha256=digest)[1].get("error", ""))


def test_a_broken_copy_goes_on_and_the_model_is_used(
    comfyui: Path, pair: tuple[Master, Master], road: Road, folder: Path
) -> None:
    studio, box = pair
    accept(box, yes=True)
    with runner_at(box) as run:
        with pytest.raises(Unfit, match=f"lacks '{NAME}' for VAELoader"):
            run(decoded())
        interrupt(studio, box, road)
        break_off(studio, box, road)
        road.sent, road.hold_at = 0, math.inf
        with ran_again(comfyui, studio) as studio:
            said = run_command("models", "copy", NAME, "--to", "box", "--url", studio.url)
            assert said.returncode == 0, said.stderr
            assert f"{NAME} to box: 100%, is there" in said.stdout
            assert road.sent < 34 * MIB, "what was there is not sent again"
            found = check(studio, folder)
            assert (found["missing"], found["differ"], found["accepts"]) == ([], [], True)
        assert run(decoded()).files, "it has not been told, and looks again"
    there = box.base / "models" / "vae"
    assert [path.name for path in there.iterdir()] == [NAME]
    own = studio.base / "models" / "vae" / NAME
    assert (there / NAME).read_bytes() == own.read_bytes()


async def greeted(box: Master) -> tuple[RemoteRunner, Link]:
    link = Link(Endpoint(url=box.url, token=box.token), patience_s=30)
    runner = RemoteRunner(link, {})
    await runner.greet()
    return runner, link


@contextmanager
def runner_at(box: Master) -> Iterator[Callable[[Prompt], Result]]:
    """Runs prompts there as a fleet does."""
    with closing(asyncio.new_event_loop()) as loop:
        runner, link = loop.run_until_complete(greeted(box))

        def run(prompt: Prompt) -> Result:
            work = runner.run(prompt, uuid4().hex, lambda done: None, {})
            return loop.run_until_complete(work)

        try:
            yield run
        finally:
            loop.run_until_complete(link.close())


def interrupt(studio: Master, box: Master, road: Road) -> None:
    """Ctrl-C in the command."""
    road.sent, road.hold_at = 0, 12 * MIB
    command = [str(COMFYFLEET), "models", "copy", NAME, "--to", "box", "--url", studio.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        wait_until(lambda: road.sent >= road.hold_at, "the second piece")
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    assert (running.returncode, "was stopped" in said) == (130, True), said
    (part,) = (box.base / "models").rglob("*.part")
    assert part.stat().st_size == 8 * MIB


def break_off(studio: Master, box: Master, road: Road) -> None:
    """The connection breaks, which is made again; then the master is killed."""
    road.sent, road.cut_at, road.hold_at = 0, 4 * MIB, 22 * MIB
    body = {"file": NAME, "worker": "box"}
    copy = studio.post(f"{BASE}/models/copy", body)
    assert studio.post(f"{BASE}/models/copy", body)["id"] == copy["id"], "it joins the first"
    wait_until(lambda: road.sent >= road.hold_at, "the middle")
    assert road.cuts == 1
    (now,) = [e for e in studio.get(f"{BASE}/models/copies")["copies"] if e["id"] == copy["id"]]
    assert (now["state"], now["total"] > now["bytes"] >= 16 * MIB) == ("sending", True)
    studio.process.kill()
    studio.process.wait()
    (part,) = (box.base / "models").rglob("*.part")
    assert part.stat().st_size >= 16 * MIB


@contextmanager
def ran_again(comfyui: Path, before: Master) -> Iterator[Master]:
    with closing(Master(comfyui, before.base, workers="0")) as studio:
        yield studio


def test_a_model_goes_from_one_worker_to_another(
    comfyui: Path, pair: tuple[Master, Master], road: Road, folder: Path
) -> None:
    """Through the master, which lacks it; here the other worker is the master's own ComfyUI."""
    studio, _ = pair
    own = studio.base / "models" / "vae" / NAME
    content = own.read_bytes()
    own.unlink()
    write_secret(studio.folder / "own.token", studio.token)
    with ran_again(comfyui, studio) as studio:
        own_entry = f"- name: own\n  url: {studio.url}\n  token_file: own.token\n"
        boxed = f"workers:\n- name: box\n  url: {road.url}\n  token_file: box.token\n"
        file = studio.folder / "fleet.yaml"
        file.write_text(f"settings:\n  accept_models: true\n{boxed}{own_entry}")
        workflow = folder / "workflow.json"
        said = run_command("models", "check", str(workflow), "--url", studio.url)
        command = f"comfyfleet models copy '{NAME}' --to own --from box"
        assert command in said.stdout, said.stdout
        said = run_command("models", "copy", NAME, "--to", "own", "--url", studio.url)
        assert "name a worker that has it by --from" in " ".join(said.stderr.split())
        options = ("--to", "own", "--from", "box", "--url", studio.url)
        said = run_command("models", "copy", NAME, *options)
        assert said.returncode == 0, said.stderr
        assert f"{NAME} from box to own: 100%, is there" in said.stdout
    assert own.read_bytes() == content
