"""The demo model inside ComfyUI: quality on unseen prompts, and the stock parts around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

DEMO = Path(__file__).resolve().parents[2] / "demo"
WEIGHTS = DEMO / "weights.safetensors"
sys.path.insert(0, str(DEMO))

import grammar  # noqa: E402  (found through the path above)

pytestmark = pytest.mark.comfy

HELD_OUT = 30
MUST_BE_RIGHT = 27
MOST_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def architecture() -> Any:
    import train

    return train.load_architecture(use_cpu=not torch.cuda.is_available())


@pytest.fixture(scope="module")
def parts(architecture: Any) -> Any:
    return architecture.load_demo_model(WEIGHTS)


def test_held_out_prompts_come_out_right(parts: Any) -> None:
    import evaluate

    specs = grammar.held_out_specs(HELD_OUT, seed=2024)
    prompts = [grammar.prompt(spec) for spec in specs]
    pictures = evaluate.sample_pictures(parts, prompts, evaluate.Sampling())
    verdicts = [grammar.check(picture, spec) for picture, spec in zip(pictures, specs, strict=True)]
    print(evaluate.summary(verdicts))
    wrong = [(p, v.seen) for p, v in zip(prompts, verdicts, strict=True) if not v.good]
    assert HELD_OUT - len(wrong) >= MUST_BE_RIGHT, wrong


def test_the_same_seed_gives_the_same_picture(parts: Any) -> None:
    import evaluate

    how = evaluate.Sampling(steps=4)
    first, again = (evaluate.sample_pictures(parts, ["a red star"], how)[0] for _ in range(2))
    assert (first == again).all()


@torch.inference_mode()
def test_the_vae_gives_held_out_drawings_back(parts: Any) -> None:
    from drawing import to_pixels

    vae = parts[2]
    specs = grammar.held_out_specs(20, seed=5)
    drawn = torch.stack([torch.from_numpy(grammar.draw(s)).float() / 255 for s in specs])
    latent = vae.encode(drawn)
    assert latent.shape == (20, 4, 16, 16)
    back = to_pixels(vae.decode(latent))
    assert all(grammar.check(picture, spec).good for picture, spec in zip(back, specs, strict=True))


def test_unknown_words_case_and_commas_change_nothing(parts: Any) -> None:
    clip = parts[1]
    plain = clip.tokenize("a large red star top on gray")
    assert clip.tokenize("A BIG shiny red star, top, on grey!") == plain
    assert clip.tokenize("a large red star bottom on gray") != plain


def test_a_lora_changes_the_picture(parts: Any) -> None:
    import comfy.lora
    import evaluate

    model, clip, vae = parts
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    target = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    assert target in keys.values()
    patched = model.clone()
    change = torch.randn(384, 128, generator=torch.Generator().manual_seed(0))
    assert patched.add_patches({target: ("diff", (change,))}, 0.2) == [target]
    how = evaluate.Sampling(steps=4)
    plain = evaluate.sample_pictures(parts, ["a red star"], how)[0]
    other = evaluate.sample_pictures((patched, clip, vae), ["a red star"], how)[0]
    restored = evaluate.sample_pictures(parts, ["a red star"], how)[0]
    assert (plain != other).any() and (plain == restored).all()


def test_the_stock_nodes_run_the_workflow(parts: Any) -> None:
    import nodes

    graph = json.loads((DEMO / "workflow.json").read_text())
    results: dict[str, Any] = {"1": parts}
    for number in sorted(set(graph) - {"1"}, key=int):
        node = graph[number]
        if node["class_type"] == "SaveImage":
            continue
        inputs = {
            name: results[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        kind = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        with torch.inference_mode():
            results[number] = getattr(kind(), kind.FUNCTION)(**inputs)
    assert results["6"][0].shape == (1, 128, 128, 3)


def test_the_weights_are_small_and_say_where_they_come_from() -> None:
    from safetensors import safe_open

    assert WEIGHTS.stat().st_size <= MOST_BYTES
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert {"seed", "commands", "steps", "vae_steps", "torch"} <= set(metadata)
    assert metadata["steps"] == metadata["planned_steps"]


def test_another_file_is_refused(architecture: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"demo/train\.py"):
        architecture.load_demo_model(tmp_path / "other.safetensors")
