"""The batch of a forward: split by weights, joined in its order."""

from __future__ import annotations

import sys
from collections import defaultdict, namedtuple
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.batch import Unsplittable, split_batch
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.tree import leaves

Pair = namedtuple("Pair", ["a", "b"])


def rows(*shape: int) -> torch.Tensor:
    """Rows that tell themselves apart: row i holds i."""
    return torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def given_call(chunks: int, samples: int, **kwargs) -> Call:
    options = {"cond_or_uncond": list(range(chunks)), **kwargs.pop("transformer_options", {})}
    batch = chunks * samples
    return Call((rows(batch, 2, 3), rows(batch)), {"transformer_options": options, **kwargs})


def test_a_part_takes_the_same_samples_of_each_chunk():
    split = split_batch(given_call(2, 4, context=rows(8, 5)), [3, 1])
    assert [call.args[1].tolist() for call in split.calls] == [[0, 1, 2, 4, 5, 6], [3, 7]]
    assert [call.kwargs["context"][:, 0].tolist() for call in split.calls] == [
        [0, 1, 2, 4, 5, 6],
        [3, 7],
    ]
    assert split.join([call.args[1] for call in split.calls]).tolist() == list(range(8))


def test_more_parts_than_samples_leave_some_without():
    split = split_batch(given_call(2, 2), [1, 1, 1])
    assert [call and call.args[1].tolist() for call in split.calls] == [[0, 2], [1, 3], None]
    assert split.join([rows(2), rows(2), None]).shape == (4,)


def test_one_sample_goes_to_the_largest_weight():
    call = given_call(2, 1)
    split = split_batch(call, [1, 3, 2])
    assert split.calls[0] is None and split.calls[2] is None
    assert split.calls[1].args[0] is call.args[0]
    output = rows(2, 3)
    assert split.join([None, output, None]) is output


def test_chunks_are_found_by_position_too_and_are_one_without_conditionings():
    x, options = rows(4), {"cond_or_uncond": [0, 1]}
    by_position = split_batch(Call((x, x, 25, options), {}), [1, 1])
    assert by_position.calls[0].args[1].tolist() == [0, 2]
    for kwargs in (
        {},
        {"transformer_options": {}},
        {"transformer_options": {"cond_or_uncond": []}},
    ):
        assert split_batch(Call((x,), kwargs), [1, 1]).calls[0].args[0].tolist() == [0, 1]


def test_one_chunk_is_cut_into_views():
    call = given_call(1, 4)
    for part in split_batch(call, [1, 1]).calls:
        assert (
            part.args[0].untyped_storage().data_ptr() == call.args[0].untyped_storage().data_ptr()
        )


def test_what_is_not_of_the_batch_stays_the_same_object():
    one, scalar, patch = torch.zeros(1, 7), torch.zeros(()), lambda q: q
    call = given_call(
        2, 2, y=one, guidance=scalar, transformer_options={"patches": {"attn1": [patch]}}
    )
    for part in split_batch(call, [1, 1]).calls:
        assert part.kwargs["y"] is one and part.kwargs["guidance"] is scalar
        assert part.kwargs["transformer_options"]["patches"]["attn1"] == [patch]


def test_parts_share_no_container_with_the_caller_or_each_other():
    control = {"input": [], "middle": [rows(4)], "output": [None, rows(4)]}
    call = given_call(2, 2, control=control)
    for weights in ([1, 1], [1, 0]):
        for part in filter(None, split_batch(call, weights).calls):
            part.kwargs["control"]["output"].pop()  # as UNets do
            part.kwargs["transformer_options"]["block"] = ("input", 0)
        assert [len(control[key]) for key in control] == [0, 1, 2]
        assert "block" not in call.kwargs["transformer_options"]


def test_containers_keep_their_types():
    nested = {
        "named": Pair([rows(4)], 1),
        "size": torch.Size([4, 2]),
        "default": defaultdict(list, {"k": (rows(4),)}),
    }
    part = split_batch(given_call(1, 4, nested=nested), [1, 3]).calls[0].kwargs["nested"]
    assert isinstance(part["named"], Pair) and part["named"].a[0].tolist() == [0]
    assert part["size"] == torch.Size([4, 2]) and isinstance(part["size"], torch.Size)
    assert part["default"]["new"] == [] and part["default"]["k"][0].tolist() == [0]


def test_a_tensor_in_several_places_stays_one():
    shared = rows(4)
    part = split_batch(given_call(2, 2, control={"input": [shared, shared]}), [1, 1]).calls[1]
    first, second = part.kwargs["control"]["input"]
    assert first is second and first.tolist() == [1, 3]


@pytest.mark.parametrize(("length", "taken"), [(1, [0]), (3, [2]), (6, [2, 5])])
def test_sigmas_may_be_of_one_chunk(length, taken):
    call = given_call(2, 3, transformer_options={"sigmas": rows(length)})
    part = split_batch(call, [2, 1]).calls[1]
    assert part.kwargs["transformer_options"]["sigmas"].tolist() == taken


def test_the_schedule_is_never_cut_even_if_it_is_as_long_as_the_batch():
    schedule = rows(6)
    call = given_call(2, 3, transformer_options={"sample_sigmas": schedule})
    for part in split_batch(call, [2, 1]).calls:
        assert part.kwargs["transformer_options"]["sample_sigmas"] is schedule


@pytest.mark.parametrize("shape", [(3, 2), (12,), (0,)])
def test_a_tensor_of_another_length_is_refused_with_its_path(shape):
    call = given_call(2, 3, ref_latents=[torch.zeros(1), torch.zeros(shape)])
    with pytest.raises(Unsplittable) as caught:
        split_batch(call, [1, 1])
    assert isinstance(caught.value, CannotSplit)
    assert str(caught.value) == (
        f'kwargs["ref_latents"][1] has shape {shape}; of a batch of 6 its first dim must be '
        "that or 1"
    )
    whole = split_batch(call, [1, 0]).calls[0]
    assert whole.kwargs["ref_latents"][1] is call.kwargs["ref_latents"][1]


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"num_video_frames": 3}, 'kwargs["num_video_frames"]'),
        (
            {"transformer_options": {"ad_params": {"full_length": 3}}},
            'kwargs["transformer_options"]["ad_params"]',
        ),
    ],
)
def test_samples_that_depend_on_each_other_are_not_split(kwargs, path):
    call = given_call(1, 3, **kwargs)
    with pytest.raises(Unsplittable) as caught:
        split_batch(call, [1, 1])
    assert str(caught.value).startswith(f"{path} is given: in ")
    assert split_batch(call, [0, 1]).calls[1].args[0] is call.args[0]
    assert split_batch(given_call(1, 3, num_video_frames=None), [1, 1]).calls[1]


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ((), "NoneType"),
        (([rows(2)],), "list"),
        ((torch.zeros(()),), r"a tensor of shape \(\)"),
        ((torch.zeros(0, 2),), r"a tensor of shape \(0, 2\)"),
    ],
)
def test_the_first_argument_must_be_a_batch(args, given):
    with pytest.raises(Unsplittable, match=f"args\\[0\\] is {given}; "):
        split_batch(Call(args, {}), [1, 1])


def test_the_batch_must_be_a_multiple_of_the_conditionings():
    call = Call((rows(3),), {"transformer_options": {"cond_or_uncond": [0, 1]}})
    with pytest.raises(Unsplittable, match="a batch of 3, but cond_or_uncond has 2 entries"):
        split_batch(call, [1, 1])


@pytest.mark.parametrize(
    "outputs",
    [
        [rows(2), None, None],
        [rows(2), rows(2)],
        [rows(2), rows(2), rows(2)],
        [rows(2), rows(4), None],
        [rows(1), rows(2), None],
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs):
    with pytest.raises(ValueError, match="have"):
        split_batch(given_call(2, 2), [1, 1, 1]).join(outputs)


def forward(call: Call) -> torch.Tensor:
    """Something that depends on every tensor, on the row and on the chunk; exact integers."""
    chunks = len(call.kwargs["transformer_options"]["cond_or_uncond"])
    out = call.args[0].flatten(1).clone()
    for (path, tensor), factor in zip(leaves([*call.args, dict(call.kwargs)]), count(2)):
        column = tensor.reshape(tensor.shape[0], -1).sum(1) if tensor.dim() else tensor
        if "sample_sigmas" in path:
            column = tensor.sum()
        elif '"sigmas"' in path and len(tensor) == len(out) // chunks:
            column = column.repeat(chunks)
        out += factor * column.view(-1, 1)
    scales = torch.arange(1, chunks + 1).repeat_interleave(len(out) // chunks)
    return (out * scales.view(-1, 1)).view_as(call.args[0])


@st.composite
def calls(draw):
    chunks, samples = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    batch = chunks * samples
    numbers = count()

    def fresh(shape):
        size = torch.Size(shape).numel()
        start = next(numbers) * 1000
        return torch.arange(start, start + size).view(shape)

    tail = st.lists(st.integers(1, 3), max_size=2)
    batched = tail.map(lambda dims: fresh((batch, *dims)))
    shared = tail.map(lambda dims: fresh((1, *dims))) | st.builds(fresh, st.just(()))
    other = st.sampled_from([None, 1.5, "text", True])
    tree = st.recursive(
        batched | shared | other,
        lambda child: st.one_of(
            st.lists(child, max_size=3),
            st.lists(child, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from(["a", "b", ("c", 1)]), child, max_size=3),
        ),
        max_leaves=8,
    )
    options = {
        "cond_or_uncond": list(range(chunks)),
        "sigmas": fresh((draw(st.sampled_from([1, samples, batch])),)),
        "sample_sigmas": fresh((draw(st.integers(1, 12)),)),
        "more": draw(tree),
    }
    kwargs = {"transformer_options": options, "control": draw(tree)}
    return Call((fresh((batch, 2, 2)), fresh((batch,)), draw(tree)), kwargs)


weights = st.lists(st.sampled_from([0, 0.5, 1, 1, 2, 7]), min_size=1, max_size=4).filter(any)


@given(calls(), weights)
def test_the_joined_parts_equal_the_whole(call, weights):
    split = split_batch(call, weights)
    outputs = [part and forward(part) for part in split.calls]
    assert torch.equal(split.join(outputs), forward(call))


@pytest.fixture(scope="module")
def comfy(comfyui):
    """What makes ComfyUI's model classes plain ones of torch."""
    if str(comfyui) not in sys.path:
        sys.path.append(str(comfyui))
    import comfy.cli_args

    # Both are read once, when comfy.model_management is first imported.
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.ops

    return {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def wan(batch, **plain):
    from comfy.ldm.wan.model import VaceWanModel

    sizes = {"dim": 48, "ffn_dim": 32, "freq_dim": 16, "text_dim": 12, "num_heads": 2}
    vace = {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 8}
    model = VaceWanModel(in_dim=4, out_dim=4, num_layers=2, **vace, **sizes, **plain)
    args = noise(batch, 4, 2, 6, 6), torch.rand(batch), noise(batch, 7, 12)
    more = {"vace_context": noise(batch, 2, 8, 2, 6, 6), "vace_strength": [1.0, 0.5]}
    return model, model._forward, args, more


def sd3(batch, **plain):
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    text = {"target": "torch.nn.Linear", "params": {"in_features": 12, "out_features": 128}}
    model = OpenAISignatureMMDITWrapper(
        input_size=None,
        pos_embed_max_size=16,
        in_channels=4,
        depth=2,
        adm_in_channels=10,
        context_embedder_config=text,
        **plain,
    )
    args = noise(batch, 4, 6, 5), torch.rand(batch), noise(batch, 7, 12), noise(batch, 10)
    # This one has no _forward, and no wrapper is called for it.
    return model, model.forward, args, {"control": {"output": [noise(batch, 9, 128), None]}}


def sdxl(batch, **plain):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(
        image_size=8,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        num_heads=2,
        use_spatial_transformer=True,
        transformer_depth=[1, 1],
        transformer_depth_output=[1] * 4,
        transformer_depth_middle=1,
        use_linear_in_transformer=True,
        context_dim=12,
        num_classes="sequential",
        adm_in_channels=10,
        **plain,
    )
    args = noise(batch, 4, 8, 8), torch.rand(batch), noise(batch, 7, 12), noise(batch, 10)
    middle = noise(batch, 64, 4, 4)
    output = [noise(1, 32, 8, 8), None, noise(batch, 32, 4, 4), middle]
    return model, model._forward, args, {"control": {"middle": [middle], "output": output}}


@pytest.mark.comfy
@pytest.mark.parametrize("family", [wan, sd3, sdxl])
@torch.inference_mode()
def test_real_models_give_the_same(comfy, family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, run, args, kwargs = family(batch=8, **comfy)
        for weight in model.eval().parameters():
            torch.nn.init.normal_(weight, std=0.05)
        options = {"cond_or_uncond": [0, 1], "sigmas": noise(4), "sample_sigmas": noise(8)}
    split = split_batch(Call(args, {"transformer_options": options, **kwargs}), [3, 1])
    outputs = [run(*part.args, **part.kwargs) for part in split.calls]
    whole = run(*args, transformer_options=options, **kwargs)
    # Not bit for bit: kernels for matrices of another height sum in another order.
    torch.testing.assert_close(split.join(outputs), whole, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole[0], whole[1], rtol=0.1)
