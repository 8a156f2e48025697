from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyfleet.comfy.slices import count_items, part_of, slice_items


def cut(entries: list[Any], size: int) -> list[list[Any]]:
    total = count_items(entries)
    return [slice_items(entries, i, min(total, i + size)) for i in range(0, total, size)]


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (5, 4, 4)])
def test_pictures_and_masks_item_by_item(shape: tuple[int, ...]) -> None:
    batch = torch.rand(shape)
    parts = cut([batch], 2)
    assert [part[0].shape[0] for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part[0] for part in parts]), batch)


def test_a_sound_keeps_its_rate() -> None:
    sound = {"waveform": torch.rand(3, 2, 100), "sample_rate": 44100}
    parts = [part[0] for part in cut([sound], 2)]
    assert [part["waveform"].shape for part in parts] == [(2, 2, 100), (1, 2, 100)]
    assert {part["sample_rate"] for part in parts} == {44100}


def test_a_latent_knows_which_items_it_holds() -> None:
    parts = [part[0] for part in cut([{"samples": torch.rand(5, 4, 8, 8)}], 2)]
    assert [part["batch_index"] for part in parts] == [[0, 1], [2, 3], [4]]


def test_a_latent_that_has_numbers_keeps_them() -> None:
    latent = {"samples": torch.rand(3, 4, 8, 8), "batch_index": [7, 3, 9]}
    assert [part[0]["batch_index"] for part in cut([latent], 2)] == [[7, 3], [9]]


@pytest.mark.parametrize("num_masks", [1, 2, 5])
def test_masks_are_repeated_over_the_batch_as_samplers_do(num_masks: int) -> None:
    mask = torch.rand(num_masks, 1, 8, 8)
    parts = [part[0] for part in cut([{"samples": torch.rand(5, 4, 8, 8), "noise_mask": mask}], 2)]
    for i in range(5):
        found = parts[i // 2]["noise_mask"]
        assert torch.equal(found[i % 2 % found.shape[0]], mask[i % num_masks])


def test_a_list_is_cut_by_its_entries() -> None:
    entries = [torch.rand(2, 4, 4, 3), torch.rand(1, 8, 8, 3), "text"]
    assert count_items(entries) == 3
    assert slice_items(entries, 1, 3) == entries[1:]


@pytest.mark.parametrize("value", [3, "text", torch.rand(4), [["cond", {}]], {"other": 1}])
def test_what_has_no_batch_is_one_item(value: Any) -> None:
    assert count_items([value]) == 1
    assert slice_items([value], 0, 1)[0] is value


def test_a_part_of_a_slice_has_its_place_in_the_whole_batch() -> None:
    (whole,) = slice_items([{"samples": torch.rand(9, 4, 8, 8)}], 3, 9)
    (part,) = part_of([whole], 0, 2, 5)
    assert part["batch_index"] == [5, 6, 7]
    assert torch.equal(part["samples"], whole["samples"][2:5])
    assert (part_of([3], 1, 2, 5), part_of([6], 2, 2, 5)) == ([5], [3])
