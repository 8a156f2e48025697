from __future__ import annotations

from typing import Any

import pytest

from comfyfleet.graph import FileRef, find_files, looks_like_file, missing_files
from tests.graph.prompts import all_prompts, load, node

ON_DISK = {
    ("input", "clipspace/clipspace-painted-masked-1183404.png"),
    ("input", "masks/sky.png"),
    ("input", "fox.png"),
    ("output", "ComfyUI_00042_.png"),
    ("temp", "threed/view.png"),
}


def exists(folder: str, name: str) -> bool:
    return (folder, name) in ON_DISK


def names_of(prompt: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(ref.node_id, ref.input, ref.folder, ref.name) for ref in find_files(prompt, exists)]


def test_files_of_the_mask_prompt() -> None:
    assert find_files(load("img2img_mask"), exists) == [
        FileRef(
            node_id="2",
            class_type="LoadImage",
            input="image",
            name="clipspace/clipspace-painted-masked-1183404.png",
            folder="input",
        ),
        FileRef(
            node_id="3",
            class_type="LoadImageMask",
            input="image",
            name="masks/sky.png",
            folder="input",
        ),
    ]


def test_annotations_name_the_folder() -> None:
    assert names_of(load("upscale")) == [("1", "image", "output", "ComfyUI_00042_.png")]
    assert names_of({"1": node("A", x="fox.png [output]", y="fox.png[input]")}) == []


@pytest.mark.parametrize(
    "value",
    [
        ["fox.png", "fox.png", "other.png"],
        {"__value__": ["x", {"deep": "fox.png"}]},
        ["fox.png", "masks/none.png"],
        "fox.png [input]",
    ],
)
def test_any_input_of_any_class_may_name_files(value: Any) -> None:
    assert names_of({"1": node("SomePacksNode", weird=value)}) == [
        ("1", "weird", "input", "fox.png")
    ]


def test_load_3d_names_its_views_in_an_object() -> None:
    prompt = {"1": node("Load3D", image={"image": "threed/view.png [temp]", "mask": ""})}
    assert names_of(prompt) == [("1", "image", "temp", "threed/view.png")]


def test_links_are_no_files() -> None:
    prompt = {"fox.png": node("A"), "2": node("B", x=["fox.png", 0])}
    assert names_of(prompt) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../secret.png",
        "a\\..\\b.png",
        "C:\\x.png",
        "\\\\host\\x",
        "a\nb.png",
        "a\0.png",
        "x" * 5000,
    ],
)
def test_dangerous_names_do_not_reach_the_file_system(name: str) -> None:
    def refuse(folder: str, name: str) -> bool:
        raise AssertionError(name)

    assert find_files({"1": node("LoadImage", image=name)}, refuse) == []


def test_missing_files_are_named() -> None:
    problems = {
        name: [str(problem) for problem in missing_files(prompt, exists)]
        for name, prompt in all_prompts().items()
    }
    assert problems.pop("flux_lora_controlnet") == [
        "node 8 (LoadImage): input 'image' is 'reference/boat_sketch.png', which is not in "
        "ComfyUI's input folder; put the file there, or choose another"
    ]
    assert not any(problems.values())


@pytest.mark.parametrize(
    ("class_type", "input_name"),
    [
        ("LoadAudio", "audio"),
        ("LoadImage", "image"),
        ("LoadImageMask", "image"),
        ("LoadImageOutput", "image"),
        ("LoadLatent", "latent"),
        ("LoadVideo", "file"),
    ],
)
def test_every_loader_is_checked(class_type: str, input_name: str) -> None:
    (problem,) = missing_files({"7": node(class_type, **{input_name: "gone [output]"})}, exists)
    assert (problem.node_id, problem.class_type) == ("7", class_type)
    assert "'gone', which is not in ComfyUI's output folder" in problem.message


def test_only_certain_misses_are_problems() -> None:
    prompt = {
        "1": node("SomePacksLoader", image="gone.png"),
        "2": node("LoadImage", image=["1", 0]),
        "3": node("LoadImage"),
    }
    assert missing_files(prompt, exists) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fox.png", True),
        ("a/b/FOX.JPG [output]", True),
        ("clip.mp4", True),
        ("voice.flac", True),
        ("x.latent", True),
        ("SDXL\\model.safetensors", True),
        ("a cat", False),
        ("draw\na.png", False),
        ("x" * 5000 + ".png", False),
        ("", False),
        (3, False),
        (["a.png"], False),
    ],
)
def test_looks_like_file(value: object, expected: bool) -> None:
    assert looks_like_file(value) is expected
