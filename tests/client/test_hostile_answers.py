"""A worker on the network that answers with anything at all."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import zstandard
from aiohttp import web

from comfyfleet.api.guest import PROTOCOL
from comfyfleet.client.follower import PromptFailed
from comfyfleet.client.setup import Setup
from comfyfleet.errors import ComfyFleetError, InputError, Unfit, Unreachable
from comfyfleet.work import HISTORY, Mirrored, Told
from tests.client.hostile import (
    CLASSES,
    GUEST,
    PROMPT,
    SAVING,
    STATS,
    Hostile,
    greet,
    play,
    png,
    run_unit,
    save_unit,
    saved,
    served,
    whole,
)


def answering(data: Any, **options: Any) -> Any:
    """A handler: bytes and text as they are, the rest as JSON."""

    async def answer(request: web.Request) -> web.Response:
        text = data if isinstance(data, bytes | str) else json.dumps(data)
        body = io.BytesIO(text if isinstance(text, bytes) else text.encode())
        return web.Response(body=body, **options)

    return answer


def test_it_is_met_as_long_as_it_is_decent() -> None:
    result = play(Hostile(), run_unit)
    assert result.values.buffers[0].view(np.float32).reshape(1, 16, 16, 3)[0, 0, 0, 0] == 1
    hostile = Hostile()
    hostile.output = {"images": [saved("sub_00001_.png", "deep/er")]}
    (file,) = play(hostile, save_unit).files
    assert (file.node_id, file.name, file.data) == ("3", "deep/er/sub_00001_.png", png())


# Where it would send us.


@pytest.mark.parametrize("path", ["/system_stats", "/object_info", "/history", "/view", "/ws"])
def test_no_redirect_is_followed(path: str) -> None:
    """Neither by HTTP nor by a web socket; it is said where it would have led."""
    hostile, other = Hostile(), Hostile()
    with served(other) as [url]:
        hostile.instead[path] = answering("", status=307, headers={"Location": f"{url}{path}"})
        with pytest.raises(Unreachable, match=f"sends us on to '{url}{path}', which is not follow"):
            play(hostile, whole, greet=False)
    assert other.visits == []


# What it says of itself.


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        ("/system_stats", [1], "not as a ComfyUI does"),
        ("/system_stats", {"system": 3}, "not as a ComfyUI does"),
        ("/system_stats", b"\xff\xfe", "not as a ComfyUI does"),
        ("/system_stats", gzip.compress(json.dumps(STATS).encode()), "not as a ComfyUI does"),
        ("/system_stats", "[" * 100_000, "not as a ComfyUI does"),
        ("/system_stats", {"system": {}}, "is ComfyUI of old; 0.3.75 is needed: update"),
        ("/system_stats", {"system": {"comfyui_version": "0.3.10"}}, "is ComfyUI 0.3.10; 0.3.75"),
        ("/system_stats", {"system": {"comfyui_version": ["x"]}}, "is ComfyUI of old"),
        ("/object_info", [], "no list of nodes as ComfyUI has"),
        ("/object_info", "<html>", "no list of nodes as ComfyUI has"),
        ("/object_info", {}, "no list of nodes as ComfyUI has"),
        ("/object_info", {"SaveImage": 1} | dict.fromkeys(map(str, range(100_001))), "names 10000"),
        (f"{GUEST}/hello", {"comfyfleet": "9.9", "protocol": 9}, "9.9, which this one does not"),
    ],
)
def test_who_is_no_comfyui_is_named(path: str, data: Any, said: str) -> None:
    hostile = Hostile()
    hostile.instead[path] = answering(data)
    with pytest.raises(ComfyFleetError, match=said):
        play(hostile, greet, greet=False)


@pytest.mark.parametrize("status", [401, 403])
def test_who_does_not_let_us_in_is_named(status: int) -> None:
    hostile = Hostile()
    hostile.instead["/system_stats"] = answering("", status=status)
    with pytest.raises(InputError, match=r"does not let us in.*give its token"):
        play(hostile, greet, greet=False)


def test_nonsense_of_its_devices_is_harmless() -> None:
    """What is shown steers no terminal; numbers are numbers."""
    hostile = Hostile()
    device = {
        "name": "\x1b[2Jgpu\n" + "x" * 9999,
        "type": {},
        "vram_free": 1e300,
        "vram_total": "9",
    }
    system = {**STATS["system"], "ram_total": -5, "argv": [3, None, {}], "pytorch_version": []}
    hostile.instead["/system_stats"] = answering({"system": system, "devices": [device]})

    async def work(hostile: Hostile, runner: Any) -> Any:
        return await runner.greet(), await runner.memory()

    greeting, memory = play(hostile, work)
    assert greeting.device == "unknown" and memory == (0, 0)
    assert greeting.device_name.isprintable() and len(greeting.device_name) == 100


def test_a_clock_far_off_and_a_date_that_is_none() -> None:
    hostile = Hostile()
    far = {"Date": "Tue, 01 Jan 2030 00:00:00 GMT"}
    hostile.instead["/system_stats"] = answering(STATS, headers=far)
    assert "its clock is off by" in play(hostile, greet).note
    hostile.instead["/system_stats"] = answering(STATS, headers={"Date": "Tue, 99 Foo 999999"})
    assert "clock" not in play(hostile, greet).note


def test_what_may_make_other_pixels_is_noted() -> None:
    hostile = Hostile()
    system = {**STATS["system"], "pytorch_version": "2.1.0+cu118"}
    argv = ["main.py", "--fast", "--port", "8188", "--fp8_e4m3fn-unet"]
    hostile.instead["/system_stats"] = answering({**STATS, "system": {**system, "argv": argv}})
    own = Setup(comfyui="0.3.80", torch="2.9.1", flags=frozenset({"--force-fp32"}))
    note = play(hostile, greet, own=own).note
    assert note.endswith(
        "may make other pixels: ComfyUI 0.3.75 there, 0.3.80 here, torch 2.1.0 there, 2.9.1 here, "
        "--fast there, --fp8_e4m3fn-unet there, --force-fp32 here"
    )


def test_models_that_are_missing_are_named() -> None:
    hostile = Hostile()
    choice = {"required": {"name": [["there.safetensors"]]}}
    hostile.instead["/object_info"] = answering({**CLASSES, "Load": {"input": choice}})
    load = {"class_type": "Load", "inputs": {"name": "gone.safetensors"}}

    async def work(hostile: Hostile, runner: Any) -> None:
        with pytest.raises(Unfit, match=r"lacks 'gone\.safetensors' for Load\.name"):
            await run_unit(hostile, runner, PROMPT | {"4": load})

    play(hostile, work)


def test_models_that_are_larger_than_its_memory_are_not_for_it(tmp_path: Any) -> None:
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.truncate(20_000_000_000)
    load = {"class_type": "EmptyImage", "inputs": {"name": "big.safetensors"}}

    async def work(hostile: Hostile, runner: Any) -> None:
        with pytest.raises(Unfit, match=r"memory for models of 20\.0 GB \(it has 17\.2 GB\)"):
            await run_unit(hostile, runner, PROMPT | {"4": load})

    play(Hostile(), work, models=[tmp_path])


def test_models_that_only_it_has_are_measured_there() -> None:
    hostile = Hostile()
    hostile.instead[f"{GUEST}/hello"] = answering({"comfyfleet": "1", "protocol": PROTOCOL})
    sizes = {"vae": 20_000_000_000, "unet": 90_000_000_000}  # of files with the same name
    listed: list[Any] = [
        {"folder": f, "file": "sub/big.safetensors", "size": n} for f, n in sizes.items()
    ]
    listed += [7, {}]
    hostile.instead[f"{GUEST}/models"] = answering({"accepts": False, "models": listed})
    load = {"class_type": "EmptyImage", "inputs": {"name": "sub\\big.safetensors"}}

    async def work(hostile: Hostile, runner: Any) -> None:
        with pytest.raises(Unfit, match=r"memory for models of 20\.0 GB \(it has 17\.2 GB\)"):
            await run_unit(hostile, runner, PROMPT | {"4": load})

    play(hostile, work)


@pytest.mark.parametrize("limit", [1 << 20, 0, float("inf"), float("nan"), "much", None])
def test_how_large_a_file_may_be_is_asked_anew(tmp_path: Any, limit: object) -> None:
    """Its owner may have started it with another limit; nonsense is none."""
    (tmp_path / "a.png").write_bytes(png())
    named = {**PROMPT["1"], "inputs": {"image": "a.png"}}

    async def work(hostile: Hostile, runner: Any) -> None:
        hostile.instead["/features"] = answering({"max_upload_size": 10})
        with pytest.raises(Unfit, match="--max-upload-size"):
            await run_unit(hostile, runner, PROMPT | {"1": named})
        hostile.instead["/features"] = answering({"max_upload_size": limit})
        await run_unit(hostile, runner, PROMPT | {"1": named})
        assert "POST /upload/image" in hostile.visits

    play(Hostile(), work, folders={"input": tmp_path})


# What it says of prompts.


def test_a_prompt_under_another_id() -> None:
    hostile = Hostile()

    async def other(request: web.Request) -> web.Response:
        return web.json_response({"prompt_id": "other"})

    hostile.instead["/prompt"] = other
    with pytest.raises(Unreachable, match="under another id"):
        play(hostile, run_unit)


@pytest.mark.parametrize(
    "errors",
    [
        {"node_errors": [1]},
        {"node_errors": {"1": 5}},
        {"node_errors": {"1": {"errors": [5]}}},
        {"error": 7},
        {"error": {"type": "x", "extra_info": 3}},
    ],
    ids=str,
)
def test_a_refusal_that_makes_no_sense(errors: Any) -> None:
    hostile = Hostile()
    hostile.instead["/prompt"] = answering(errors, status=400)
    with pytest.raises(ComfyFleetError):
        play(hostile, run_unit)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"outputs": []},
        {"outputs": {"1": 4}},
        {},
        {"outputs": {}, "status": 4},
        {"outputs": {}, "status": {"messages": 3}},
        {"outputs": {}, "status": {"messages": [["execution_error", 4]]}},
        {"outputs": {}, "status": {"messages": [4]}},
    ],
    ids=str,
)
def test_a_history_that_makes_no_sense(entry: Any) -> None:
    hostile = Hostile()
    hostile.instead["/history"] = answering({"mine": entry})
    with pytest.raises(Unreachable, match="history of a prompt makes no sense"):
        play(hostile, run_unit)


def test_the_history_of_another_prompt_is_none() -> None:
    hostile = Hostile()
    hostile.instead["/history"] = answering({"other": {"outputs": {}, "status": {}}})
    with pytest.raises(ComfyFleetError, match="has no history of mine"):
        play(hostile, run_unit)


def test_events_that_make_no_sense_are_passed_over() -> None:
    hostile = Hostile()
    mine = {"prompt_id": "mine"}
    hostile.events = [
        "no JSON",
        "[1]",
        "[" * 100_000,
        b"\0\0",
        b"",
        {"type": 1, "data": {"prompt_id": "mine"}},
        {"type": ["x"], "data": 3},
        {"type": "executing", "data": {"node": None, "prompt_id": "another"}},
        {"type": "execution_error", "data": {"prompt_id": "another"}},
        {"type": "progress", "data": mine},
        '{"type": "progress", "data": {"prompt_id": "mine", "value": NaN, "max": 1e999}}',
        {"type": "progress", "data": {**mine, "value": -5, "max": "x"}},
        {"type": "execution_cached", "data": {**mine, "nodes": [[], {}]}},
        {"type": "executing", "data": {**mine, "node": [1]}},
        {"type": "executed", "data": {**mine, "node": {}, "output": 3}},
    ]
    told: list[float] = []

    async def work(hostile: Hostile, runner: Any) -> Any:
        return await runner.run(PROMPT, "mine", told.append, {})

    assert play(hostile, work).values is not None
    assert all(0 <= share <= 1 for share in told)


def test_an_error_steers_no_terminal() -> None:
    hostile = Hostile()
    data = {"exception_type": {}, "exception_message": "\x1b]0;x\x07" + "y" * 10**6}
    data |= {"traceback": ["\x1b[31m", 4], "node_id": ["x"], "node_type": 5, "prompt_id": "mine"}
    hostile.events = [{"type": "execution_error", "data": data}]
    with pytest.raises(ComfyFleetError) as caught:
        play(hostile, run_unit)
    text = str(caught.value)
    assert "\x1b" not in text and "\x07" not in text and len(text) < 300_000


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.",
        "Could not allocate tensor. There is not enough GPU video memory available!",
        "Allocation on device 0 would exceed allowed memory.",
    ],
)
def test_want_of_memory_is_known_in_everybodys_words(said: str) -> None:
    hostile = Hostile()
    data = {"exception_type": "RuntimeError", "exception_message": said, "prompt_id": "mine"}
    hostile.events = [{"type": "execution_error", "data": data}]
    with pytest.raises(PromptFailed) as caught:
        play(hostile, run_unit)
    assert caught.value.failure.kind == "out_of_memory"


def test_a_flood_of_events_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyfleet.client.follower._MAX_EVENTS", 100)
    monkeypatch.setattr("comfyfleet.client.follower._EVENTS_PER_S", 1)
    hostile = Hostile()
    hostile.events = [{"type": "status", "data": {}}] * 300
    hostile.ends = False
    with pytest.raises(ComfyFleetError, match="no ComfyUI tells so much"):
        play(hostile, run_unit)


# Files and pictures.

NAMES = [
    ("../../x.png", ""),
    ("x.png", "../.."),
    ("x.png", "/etc"),
    ("x.png", "a/../../b"),
    ("x.png", "..\\..\\b"),
    ("x.png", "C:\\b"),
    ("..", ""),
    (".hidden.png", ""),
    ("x.png", ".git"),
    ("", ""),
    ("a\\b.png", ""),
    ("a\0b.png", ""),
    ("a\x1b[2J.png", ""),
    ("a\u202egnp.png", ""),
    ("C:x.png", ""),
    ("x.png:stream.png", ""),
    ("x.png.", ""),
    ("CON.png", ""),
    ("x.png", "aux"),
    ("aux .png", ""),
    ("com\u00b9.png", ""),
    ("CONOUT$", ""),
    ("x" * 300 + ".png", ""),
    ("x.png", "/".join(["d" * 20] * 20)),
    ("x.png", ["a"]),
]
KINDS = ["x.html", "x.svg", "x.js", "x.png.svg", "x.htm", "x.xml", "x.pt", "x.ckpt", "x.npy", "x"]


@pytest.mark.parametrize(("name", "subfolder"), NAMES, ids=ascii)
def test_a_name_that_leads_elsewhere_does_not_come_home(name: str, subfolder: str) -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved(name, subfolder)]}
    with pytest.raises(Unfit, match="which is no name of a file"):
        play(hostile, save_unit)
    assert not any("/view" in visit for visit in hostile.visits)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_browser_runs_or_python_unpickles_does_not_come_home(name: str) -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved(name)]}
    with pytest.raises(Unfit, match="can hold programs and are not taken"):
        play(hostile, save_unit)


def test_names_of_windows_come_home() -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved("a b_00001_.png", "deep\\er")]}
    (file,) = play(hostile, save_unit).files
    assert file.name == "deep/er/a b_00001_.png"


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", png()[:45], bomb(16384, 16384), bomb(12_000, 12_000), b"GIF89a" + bytes(50)],
    ids=["empty", "page", "cut", "16k", "bomb", "gif"],
)
def test_a_picture_that_is_none(data: bytes) -> None:
    hostile = Hostile()
    hostile.picture = data
    with pytest.raises(Unreachable, match="a picture that is none"):
        play(hostile, run_unit)


def test_pictures_that_are_larger_than_the_memory_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyfleet.client.pictures.room", lambda: 10_000)
    hostile = Hostile()
    hostile.picture = png(64, 64)
    with pytest.raises(Unreachable, match="64 x 64 pixels are too many"):
        play(hostile, run_unit)


def test_pictures_of_several_sizes_and_none_at_all() -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved("a.png", kind="temp"), saved("b.png", kind="temp")]}

    async def view(request: web.Request) -> web.Response:
        return web.Response(body=png(8 if request.query["filename"] == "a.png" else 16))

    hostile.instead["/view"] = view
    with pytest.raises(Unfit, match="of several sizes"):
        play(hostile, run_unit)
    hostile.output = {"images": [], "other": [3, {"filename": 4}], "text": "x"}
    with pytest.raises(Unfit, match="no pictures at all"):
        play(hostile, run_unit)


def test_nothing_saved_is_no_result() -> None:
    """It would end the whole batch of the command."""
    hostile = Hostile()
    hostile.output = {"images": []}
    with pytest.raises(Unfit, match="saved nothing that could come home"):
        play(hostile, save_unit)


# The extension's own language.


class HostileGuest(Hostile):
    """With the extension, and a result of its own making."""

    def __init__(self, answer: Any, data: bytes = b"\0" * 24) -> None:
        super().__init__()
        self.instead[f"{GUEST}/hello"] = answering({"comfyfleet": "1", "protocol": PROTOCOL})

        async def prompts(request: web.Request) -> web.Response:
            if request.path.count("/") == 6:
                return web.Response(body=data)
            body = answer if isinstance(answer, str) else json.dumps(answer)
            return web.Response(text=body, content_type="application/json")

        self.instead[f"{GUEST}/prompts"] = prompts


def value(tensor: Any = (0, "float32", [1, 2, 1, 3]), sizes: Any = (24,)) -> dict[str, Any]:
    return {"skeleton": {"dict": [["images", [{"tensor": tensor}]]]}, "sizes": sizes}


def test_a_decent_guest_is_understood() -> None:
    result = play(HostileGuest(value()), run_unit)
    assert result.values.buffers[0].nbytes == 24


@pytest.mark.parametrize(
    "answer",
    [
        value(sizes=[-1]),
        value(sizes=[True]),
        value(sizes=[1 << 60]),
        value(sizes=[24, 24]),
        value(sizes=[]),
        value(sizes=[0] * 200_000),
        value(sizes="24"),
        value([0, "float32", [2, 4]]),
        value([0, "float32", [1 << 60, 0]]),
        value([0, "float32", [1] * 1000 + [6]]),
        value([-1, "float32", [6]]),
        value([0, ["x"], [6]]),
        '{"skeleton": {"tensor": [0, "float32", [NaN]]}, "sizes": [NaN]}',
        {"skeleton": {"dict": [["other", [1]]]}, "sizes": []},
        {"skeleton": {"dict": [["images", 1]]}, "sizes": []},
        {"skeleton": [1], "sizes": []},
        {"skeleton": {"video": [1]}, "sizes": []},
        {"skeleton": {"array": ["|O", [1], "AAAAAAAAAAA=", False]}, "sizes": []},
        [],
        "no JSON",
    ],
    ids=lambda answer: ascii(answer)[:60],
)
def test_a_result_that_lies(answer: Any) -> None:
    with pytest.raises(ComfyFleetError):
        play(HostileGuest(answer), run_unit)


@pytest.mark.parametrize(
    "returned",
    [
        {"tensor": [0, "float32", [2, 3]]},
        {"tensor": [0, "float32", [6]]},
        {"tensor": [0, "float32", [1, 1, 1, 2, 3]]},
        {"dict": [["pixels", {"tensor": [0, "float32", [1, 2, 1, 3]]}]]},
        {"tuple": [{"tensor": [0, "float32", [1, 2, 1, 3]]}]},
    ],
    ids=lambda returned: ascii(returned)[:60],
)
def test_images_that_are_none_are_not_joined_with_others(returned: Any) -> None:
    answer = {"skeleton": {"dict": [["images", [returned]]]}, "sizes": [24]}
    with pytest.raises(InputError, match=r"127\.0\.0\.1:.* returned images of the form"):
        play(HostileGuest(answer), run_unit)


@pytest.mark.parametrize("shape", [[0, 2, 2, 3], [1, 0, 2, 3], [1, 2, 2, 0]])
def test_only_a_batch_may_be_empty(shape: list[int]) -> None:
    guest = HostileGuest(value([0, "float32", shape], [0]))
    if shape[0] == 0:
        assert play(guest, run_unit).values.skeleton["images"][0].shape == tuple(shape)
        return
    with pytest.raises(InputError, match="returned images of the form"):
        play(guest, run_unit)


@pytest.mark.parametrize("data", [b"", b"\0" * 23, b"\0" * 25, b"\0" * 10_000])
def test_pieces_of_wrong_sizes(data: bytes) -> None:
    with pytest.raises(Unreachable, match=r"announced|over"):
        play(HostileGuest(value(), data), run_unit)


@pytest.mark.parametrize(
    "compressed",
    [zstandard.compress(b"x" * 9), zstandard.compress(b"x" * 9**8), b"nonsense"],
    ids=["short", "bomb", "nonsense"],
)
def test_compressed_pieces_that_lie(compressed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 << 20
    guest = HostileGuest(value([0, "uint8", [1, 1, size, 1]], [size]))
    plain = guest.instead[f"{GUEST}/prompts"]

    async def prompts(request: web.Request) -> web.StreamResponse:
        if request.query.get("encoding") == "raw":
            await asyncio.sleep(0.05)  # a slow link, for which pieces are compressed
            asked = int(request.query["stop"]) - int(request.query["start"])
            return web.Response(body=bytes(asked))
        return (
            web.Response(body=compressed) if "encoding" in request.query else await plain(request)
        )

    guest.instead[f"{GUEST}/prompts"] = prompts
    monkeypatch.setattr("comfyfleet.client.guest._SLOW", 1e12)
    with pytest.raises(InputError, match="compressed data"):
        play(guest, run_unit)


def test_a_full_disk_there_is_said() -> None:
    guest = HostileGuest(value())
    full = {"error": "values cannot be kept in /tmp: No space left on device. Free disk space."}
    guest.instead[f"{GUEST}/blobs"] = answering(full, status=503)

    async def work(hostile: Hostile, runner: Any) -> None:
        from comfyfleet.work import Packed, TensorRef

        values = {"x": Packed([TensorRef(0, "uint8", (3,))], [np.zeros(3, np.uint8)])}
        with pytest.raises(Unfit, match="No space left on device"):
            await runner.run(PROMPT, "mine", lambda share: None, values)

    play(guest, work)


# What it tells a client of the master.


def mirrored(hostile: Hostile) -> tuple[list[Told], dict[str, Any]]:
    asked = Mirrored(
        prompt_id="mine",
        extra_data={
            "api_key_comfy_org": "key",
            "extra_pnginfo": {"workflow": {}},
            "client_id": "c",
        },
        outputs=("3",),
        features={},
    )
    told: list[Told] = []

    async def work(hostile: Hostile, runner: Any) -> None:
        await runner.mirror(SAVING, asked, lambda share: None, told.append)

    play(hostile, work)
    return told, hostile.bodies[0]


def test_the_owners_login_stays_here() -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved()]}
    _, body = mirrored(hostile)
    assert "key" not in json.dumps(body)
    assert body["extra_data"] == {"extra_pnginfo": {"workflow": {}}}


def test_nodes_that_need_a_login_are_not_for_it() -> None:
    hostile = Hostile()
    paid = {**CLASSES["EmptyImage"], "api_node": True}
    hostile.instead["/object_info"] = answering({**CLASSES, "EmptyImage": paid})
    with pytest.raises(Unfit, match="your login, which is not sent, for EmptyImage"):
        play(hostile, run_unit)


def test_only_events_of_comfyui_reach_a_browser() -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved("a.png", "b\\c")]}
    hostile.events = [
        {"type": "impact-add-queue", "data": {}},
        {"type": "impact-node-feedback", "data": {"prompt_id": "mine"}},
        struct.pack(">I", 99) + b"x",
        struct.pack(">I", 1) + b"a preview",
    ]
    told, _ = mirrored(hostile)
    assert [each.event for each in told] == ["executed", 1, HISTORY]
    assert told[0].files[0].key == ("output", "b/c", "a.png") and told[0].files[0].foreign
    for data in (told[0].data["output"], told[2].data["outputs"]["3"]):
        assert data["images"] == [saved("a.png", "b/c")]


def test_messages_of_another_prompt_are_not_kept() -> None:
    hostile = Hostile()
    hostile.output = {"images": [saved()]}
    messages = [
        ["execution_start", {"prompt_id": "mine"}],
        ["execution_success", {"prompt_id": "another"}],
        ["impact-add-queue", {"prompt_id": "mine"}],
    ]
    status = {"completed": "yes", "status_str": "<b>", "messages": messages}
    hostile.instead["/history"] = answering({"mine": {"outputs": {}, "status": status}})
    told, _ = mirrored(hostile)
    assert told[-1].data["status"] == {
        "status_str": "error",
        "completed": False,
        "messages": messages[:1],
    }
