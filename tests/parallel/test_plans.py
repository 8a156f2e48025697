"""The plans as data: which classes they are for, that they are well-formed, and tested."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from torch import nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.plan import Frames, ParallelPlan, Part, Position, Ranges, Tokens
from comfyfleet.parallel.plans import PLANS, find_plan, hunyuan_video, wan

FAMILIES = Path(__file__).parent.parent / "parity" / "families"
IDS = [f"{plan.family}-{i}" for i, plan in enumerate(PLANS)]
each_plan = pytest.mark.parametrize("plan", PLANS, ids=IDS)


def model_of(name: str, **attributes: object) -> nn.Module:
    """A model whose class has this full name."""
    module, _, qualname = name.rpartition(".")
    model = type(qualname, (nn.Module,), {"__module__": module})()
    for key, value in attributes.items():
        setattr(model, key, value)
    return model


def streams_of(part: Part) -> set[str]:
    """All streams that a part names, but for those that it lets in."""
    found = {*part.keys, *part.kept}
    for streams in (*part.attends, *part.leave.values()):
        found |= set(streams)
    for follows in part.local.values():
        match follows:
            case Tokens(of=streams):
                found |= set(streams)
            case Ranges(of=streams, behind=behind):
                found |= {*streams, *([behind] if behind else [])}
            case Frames(of=stream) | Position(of=stream):
                found.add(stream)
    return found


def test_every_class_has_one_plan():
    names = Counter(name for plan in PLANS for name in {*plan.models, *plan.refused_models})
    conditional = {name for plan in PLANS if plan.only_if for name in plan.models}
    assert [name for name, count in names.items() if count > 1] == sorted(conditional)


def test_a_plan_with_a_condition_comes_before_the_one_without():
    for name in {name for plan in PLANS if plan.only_if for name in plan.models}:
        conditions = [plan.only_if for plan in PLANS if name in plan.models]
        assert all(conditions[:-1]) and conditions[-1] == ""


@each_plan
def test_names_are_well_formed(plan: ParallelPlan):
    for name in (*plan.models, *plan.refused_models):
        assert re.fullmatch(r"comfy\.ldm(\.[a-z_0-9]+)+\.[A-Z]\w+", name)
    assert not set(plan.models) & set(plan.refused_models)
    for part in plan.parts:
        assert re.fullmatch(r"[a-z]\w*(\.(\*|0|-1|[a-z]\w*))*", part.path)
        for argument in (*part.enter, *part.local, *part.refuses):
            assert re.fullmatch(r"([A-Za-z_]\w*|\d)(\.\d)?", argument)


@each_plan
def test_reasons_are_sentences(plan: ParallelPlan):
    reasons = [*plan.refuses.values(), *plan.refused_models.values()]
    for reason in (*reasons, *(text for part in plan.parts for text in part.refuses.values())):
        assert reason.endswith(".")


@each_plan
def test_streams_enter_before_they_are_named(plan: ParallelPlan):
    known: set[str] = set()
    for part in plan.parts:
        known |= {stream for streams in part.enter.values() for stream in streams}
        assert streams_of(part) <= known, part.path
    assert {rule.of for rule in plan.control.values()} <= known
    assert any(part.leave for part in plan.parts)
    assert any(part.attends for part in plan.parts)


@each_plan
def test_residuals_are_joined_where_the_plan_says_so(plan: ParallelPlan):
    for rule in plan.control.values():
        if rule.joined_by:
            ends = [part for part in plan.parts if part.path == f"{rule.joined_by}.-1"]
            assert any(rule.of in streams for part in ends for streams in part.leave.values())


@each_plan
def test_every_class_has_a_row_in_the_parity_table(plan: ParallelPlan):
    texts = [path.read_text(encoding="utf-8") for path in FAMILIES.glob("*.py")]
    for name in plan.models:
        module, _, cls = name.rpartition(".")
        assert any(module in text and re.search(rf"\b{cls}\b", text) for text in texts), name


@each_plan
def test_a_plan_is_found_by_its_class(plan: ParallelPlan):
    for name in plan.models:
        found = find_plan(model_of(name))
        assert found is plan or (plan.only_if and found.models == plan.models)


def test_a_condition_is_read_off_the_model():
    name = hunyuan_video.PLAN.models[0]
    first = nn.Module()
    model = model_of(name, double_blocks=nn.ModuleList([first]))
    assert find_plan(model) is hunyuan_video.PLAN
    for flipped, plan in ((True, hunyuan_video.IMAGE_FIRST), (False, hunyuan_video.PLAN)):
        first.flipped_img_txt = flipped
        assert find_plan(model) is plan


@pytest.mark.parametrize(("name", "reason"), wan.PLAN.refused_models.items())
def test_a_class_that_is_refused_says_why(name: str, reason: str):
    with pytest.raises(CannotSplit) as caught:
        find_plan(model_of(name))
    assert str(caught.value) == f"{name.rpartition('.')[2]}: {reason}"


def test_other_classes_and_subclasses_have_no_plan():
    flux = type(model_of("comfy.ldm.flux.model.Flux"))
    for model in (nn.Linear(1, 1), type("Mine", (flux,), {})()):
        with pytest.raises(CannotSplit, match="has no plan for its tokens yet"):
            find_plan(model)
