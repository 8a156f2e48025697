from __future__ import annotations

from types import ModuleType

import pytest
import torch

from comfyfleet.errors import ComfyFleetError


@pytest.fixture(scope="module")
def shipped(values: ModuleType) -> ModuleType:
    from comfyfleet.comfy import shipped

    return shipped


def test_equal_values_have_one_digest(values: ModuleType, shipped: ModuleType) -> None:
    first = {"samples": torch.arange(6.0).reshape(2, 3), "batch_index": [0, 1]}
    same = {"samples": torch.arange(12.0)[:6].reshape(2, 3).clone(), "batch_index": [0, 1]}
    assert shipped.digest_of(values.pack([first])) == shipped.digest_of(values.pack([same]))


@pytest.mark.parametrize(
    "other",
    [
        {"samples": torch.arange(6.0).reshape(3, 2), "batch_index": [0, 1]},
        {"samples": torch.arange(6.0).reshape(2, 3), "batch_index": [1, 0]},
        {"samples": torch.arange(6.0).reshape(2, 3).double(), "batch_index": [0, 1]},
        {"samples": -torch.arange(6.0).reshape(2, 3), "batch_index": [0, 1]},
    ],
)
def test_another_value_has_another_digest(
    values: ModuleType, shipped: ModuleType, other: object
) -> None:
    value = {"samples": torch.arange(6.0).reshape(2, 3), "batch_index": [0, 1]}
    assert shipped.digest_of(values.pack([value])) != shipped.digest_of(values.pack([other]))


def test_what_is_taken_is_a_copy(values: ModuleType, shipped: ModuleType) -> None:
    value = torch.zeros(4)
    shipped.hold("owner", {"d": values.pack([value])})
    shipped.take("d")[0].fill_(1)
    assert torch.equal(shipped.take("d")[0], value)
    shipped.drop("owner")


def test_values_stay_as_long_as_somebody_holds_them(
    values: ModuleType, shipped: ModuleType
) -> None:
    packed = values.pack([1])
    shipped.hold("one", {"d": packed})
    shipped.hold("two", {"d": packed})
    shipped.drop("one")
    assert shipped.take("d") == [1]
    shipped.drop("two")
    with pytest.raises(ComfyFleetError, match="did not come with this prompt"):
        shipped.take("d")
