"""Prompts for the tests of graph/: real workflows, a large one, and random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Graph = dict[str, dict[str, Any]]

DATA = Path(__file__).parents[1] / "data" / "prompts"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def load_text(name: str) -> str:
    return (DATA / f"{name}.json").read_text(encoding="utf-8")


def load(name: str) -> Graph:
    prompt: Graph = json.loads(load_text(name))
    return prompt


def large_prompt(num_images: int = 26) -> Graph:
    """One checkpoint, and per image its own prompt, latent, sampler, decoder, upscale and batch."""
    graph: Graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
        "seed": node("FleetSeed", seed=2**64 - 3),
        "negative": node("CLIPTextEncode", text="blurry", clip=["ckpt", 1]),
        "start": node("EmptyImage", width=1024, height=1024, batch_size=1, color=0),
    }
    last = "start"
    for i in range(num_images):
        graph |= {
            f"{i}:text": node("CLIPTextEncode", text=f"view {i} of a house", clip=["ckpt", 1]),
            f"{i}:latent": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
            f"{i}:sample": node(
                "KSampler",
                model=["ckpt", 0],
                seed=["seed", 0],
                steps=20,
                cfg=7.0,
                sampler_name="euler",
                scheduler="normal",
                positive=[f"{i}:text", 0],
                negative=["negative", 0],
                latent_image=[f"{i}:latent", 0],
                denoise=1.0,
            ),
            f"{i}:decode": node("VAEDecode", samples=[f"{i}:sample", 0], vae=["ckpt", 2]),
            f"{i}:scale": node(
                "ImageScaleBy",
                image=[f"{i}:decode", 0],
                upscale_method="lanczos",
                scale_by=0.5,
            ),
            f"{i}:batch": node("ImageBatch", image1=[last, 0], image2=[f"{i}:scale", 0]),
        }
        last = f"{i}:batch"
    graph["save"] = node("SaveImage", images=[last, 0], filename_prefix="house")
    return graph


def all_prompts() -> dict[str, Graph]:
    return {name: load(name) for name in NAMES} | {"large": large_prompt()}


LITERALS: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -3, 0.5, "", "a text", "x.png", True, None, [1, 2], {"k": "v"}]
)


@st.composite
def _inputs(draw: st.DrawFn, class_type: str, earlier: list[str]) -> dict[str, Any]:
    links = st.tuples(st.sampled_from(earlier or ["none"]), st.integers(0, 3)).map(list)
    if class_type in ("FleetSeed", "DistributedSeed"):
        seeds: st.SearchStrategy[Any] = st.integers(0, 2**64 - 1)
        return {"seed": draw(seeds | links if earlier else seeds)}
    if class_type == "FleetValue":
        lines = draw(st.lists(st.sampled_from(["red", "7", "0.5"]), min_size=1, max_size=4))
        return {"values": "\n".join(lines), "type": "STRING"}
    if class_type == "DistributedValue":
        shares = st.sampled_from(["1", "2", "3", "_type"])
        values = draw(st.dictionaries(shares, st.sampled_from(["", "a", "b"])))
        return {
            "default_value": draw(st.sampled_from(["", "d"])),
            "worker_values": json.dumps(values),
        }
    values = draw(st.dictionaries(st.sampled_from("abc"), LITERALS))
    sources = draw(st.dictionaries(st.sampled_from("xyz"), links)) if earlier else {}
    return {**values, **sources}


IDS = ["0", "1", "2", "10", "1.0", "5:3", "a", "ab"]
CLASSES = ["A", "B", "DistributedSeed", "DistributedValue", "FleetSeed", "FleetValue"]


@st.composite
def prompts(draw: st.DrawFn) -> Graph:
    """Random prompts without cycles; the ids and the order of the nodes say nothing."""
    ids = draw(st.permutations(IDS))[: draw(st.integers(1, len(IDS)))]
    graph: Graph = {}
    for position, node_id in enumerate(ids):
        class_type = draw(st.sampled_from(CLASSES))
        graph[node_id] = node(class_type, **draw(_inputs(class_type, ids[:position])))
    return {node_id: graph[node_id] for node_id in IDS if node_id in graph}
