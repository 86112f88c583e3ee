"""CogVLM's modules: text is the base's to the bit, images are seen in order, and their place among the Auto classes."""

from __future__ import annotations

import pytest
import torch
import transformers

from pipeline.models.architecture.visual_experts import FAMILIES, Adapter, num_image_tokens, patches_of, visual_config
from tests.models.architecture.ways import VARIANTS, random_base, reloaded, run_both_ways

IMAGE, NUM = 96, 6  # its token, and how many an image has: 2 x 2 patches of 2 x 2 pixels, boi and eoi
SIZES = {"image_token_id": IMAGE, "num_channels": 3, "image_size": 4, "patch_size": 2}


def make_pair(variant="llama", dtype=torch.float32, experts=(True, False, True)):
    """A random base, and it with experts that are not its weights, as if they were trained."""
    base = random_base(variant, dtype)
    fields = SIZES | {"image_experts": list(experts)}
    own = transformers.AutoConfig.for_model(**visual_config(base.config.to_dict(), fields))
    model = transformers.AutoModelForCausalLM.from_config(own, dtype=dtype).eval()
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected and all(is_new(name) for name in missing)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_new(name):
                parameter.normal_(std=0.3)
    return base, model


def is_new(name):
    return ".image." in name or "adapter." in name or name.endswith((".boi", ".eoi"))


def images(number, seed=3, dtype=torch.float32):
    return torch.randn(number, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def text(rows, length, seed=2):
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def prompt(rows=2, before=2, after=5):
    """[rows, before + NUM + after] ids: text, an image, text."""
    return torch.cat([text(rows, before), torch.full((rows, NUM), IMAGE), text(rows, after, 5)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_is_the_bases_to_the_bit_whatever_was_learnt(variant, dtype):
    base, model = make_pair(variant, dtype)
    assert all(torch.equal(a, b) for a, b in zip(run_both_ways(base), run_both_ways(model), strict=True))
    ids_BT = prompt()  # the image's token, where no image is given
    with torch.no_grad():
        plain = base(input_ids=ids_BT).logits
        assert torch.equal(plain, model(input_ids=ids_BT).logits)
        assert torch.equal(plain, model.train()(input_ids=ids_BT).logits)  # with a mask that is nowhere true


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, "ones"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_patch_changes_what_follows_and_nothing_before_it(variant, mask, attention):
    """Also without an attention mask, where position ids that repeat would be taken for packed documents."""
    _, model = make_pair(variant)
    model.set_attn_implementation(attention)
    ids_BT, pixels = prompt(), images(2)
    changed = pixels.clone()
    changed[0, :, 2:, 2:] += 1.0  # the last patch, in place 2 + 4
    given = {"attention_mask": torch.ones_like(ids_BT)} if mask else {}
    with torch.no_grad():
        first, second = (model(input_ids=ids_BT, pixel_values=one, **given).logits for one in (pixels, changed))
    assert torch.equal(first[1], second[1]) and torch.equal(first[0, :6], second[0, :6])
    moved = (first[0, 6:] - second[0, 6:]).abs().amax(-1)
    assert (moved[:-1] > 1e-4).all() and moved[-1] > 1e-6, moved


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_token_never_changes_an_earlier_one(variant):
    _, model = make_pair(variant)
    ids_BT, pixels = prompt(), images(2)
    changed = ids_BT.clone()
    changed[:, -2] = 1
    with torch.no_grad():
        first, second = (model(input_ids=ids, pixel_values=pixels).logits for ids in (ids_BT, changed))
    assert torch.equal(first[:, :-2], second[:, :-2]) and not torch.equal(first[:, -2], second[:, -2])


@pytest.mark.parametrize("variant", ["llama", "mistral with a window", "qwen3"])
def test_with_a_cache_beams_and_padding_it_generates_what_it_does_without(variant):
    _, model = make_pair(variant, torch.float64)
    ids_BT, pixels = prompt(), images(2, dtype=torch.float64)
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[0, :2], mask_BT[0, :2] = 0, 0
    for beams in (1, 3):
        asked = {"attention_mask": mask_BT, "max_new_tokens": 6, "num_beams": beams, "do_sample": False}
        with_cache, without = (
            model.generate(ids_BT, pixel_values=pixels, use_cache=use, **asked) for use in (True, False)
        )
        assert torch.equal(with_cache, without)
    others = model.generate(ids_BT, pixel_values=images(2, 9).double(), **asked)
    assert not torch.equal(with_cache, others)


def test_steps_through_a_cache_give_the_logits_of_the_whole_also_with_a_second_image():
    _, model = make_pair(dtype=torch.float64)
    ids_BT, pixels = torch.cat([prompt(), prompt(before=1)], dim=1), images(4, dtype=torch.float64)
    with torch.no_grad():
        whole = model(input_ids=ids_BT, pixel_values=pixels[[0, 2, 1, 3]], use_cache=False).logits
        first = model(input_ids=ids_BT[:, :10], pixel_values=pixels[:2], use_cache=True)
        parts, cache = [first.logits], first.past_key_values
        for start, stop, seen in ((10, 13, None), (13, 22, pixels[2:]), (22, 23, None), (23, 25, None)):
            given = {} if seen is None else {"pixel_values": seen}
            parts.append(model(input_ids=ids_BT[:, start:stop], past_key_values=cache, **given).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-9)


def rotary_ids(model, ids_BT, monkeypatch, **given):
    found = []
    kind = type(model.model.rotary_emb)
    plain = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x, position_ids: found.append(position_ids) or plain(self, x, position_ids)
    )
    with torch.no_grad():
        model(input_ids=ids_BT, **given)
    return found[0]


def test_patches_share_a_rotary_position_and_the_ends_have_their_own(monkeypatch):
    """And experts read boi and patches: the rule of the authors' code."""
    _, model = make_pair()
    found = rotary_ids(model, prompt(1), monkeypatch, pixel_values=images(1))
    assert found.tolist() == [[0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9]]
    mask = model.model.layers[0].mlp.up_proj.mask
    assert mask[0, :, 0].tolist() == [False] * 2 + [True] * 5 + [False] * 6


def test_documents_of_a_packed_row_are_apart_each_with_its_image():
    _, model = make_pair(dtype=torch.float64)
    lengths, pixels = (13, 9, 6), images(2, dtype=torch.float64)
    documents = [prompt(1), text(1, 9), prompt(1, before=0, after=0)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(
            input_ids=torch.cat(documents, 1), position_ids=positions, pixel_values=pixels, use_cache=False
        ).logits
        alone = [
            model(input_ids=ids, **({} if images is None else {"pixel_values": images})).logits
            for ids, images in zip(documents, (pixels[:1], None, pixels[1:]), strict=True)
        ]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)


def test_an_image_is_cut_row_by_row():
    image = torch.arange(32).reshape(1, 2, 4, 4)
    assert patches_of(image, 2)[0].tolist()[1] == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(patches_of(image, 1)[0], image[0].flatten(1).T)


def test_the_adapter_is_the_equation_of_the_docstring():
    _, model = make_pair()
    adapter, x = model.model.adapter, torch.randn(2, 4, 12)
    assert isinstance(adapter, Adapter)
    h = torch.nn.functional.gelu(
        torch.nn.functional.layer_norm(x @ adapter.project.weight.T, (32,), adapter.norm.weight, adapter.norm.bias)
    )
    gate = torch.nn.functional.silu(h @ adapter.gate_proj.weight.T)
    torch.testing.assert_close(adapter(x), (gate * (h @ adapter.up_proj.weight.T)) @ adapter.down_proj.weight.T)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_new_parameter_has_a_gradient_and_of_text_alone_one_of_zero(checkpointing):
    """But in the last block, of which an image's tokens give nothing on to text but keys and values."""
    _, model = make_pair(experts=(True, True, False))
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_new(name))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=text(2, 9), labels=text(2, 9)).loss.backward()
    new = {name: p for name, p in model.named_parameters() if is_new(name)}
    assert all(p.grad is not None and not p.grad.any() for p in new.values())
    ids_BT = prompt()
    model(input_ids=ids_BT, pixel_values=images(2), labels=ids_BT.where(ids_BT != IMAGE, -100)).loss.backward()
    assert all(p.grad.any() for p in new.values()), [name for name, p in new.items() if not p.grad.any()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llama", "llama with biases, not tied", "qwen3"])
def test_saving_and_loading_keeps_every_bit(tmp_path, variant, dtype):
    _, model = make_pair(variant, dtype)
    again = reloaded(model, tmp_path)
    with torch.no_grad():
        first, second = (m.eval()(input_ids=prompt(), pixel_values=images(2)).logits for m in (model, again))
    assert torch.equal(first, second)


def test_from_a_config_alone_the_ends_of_an_image_are_zero():
    _, model = make_pair()
    fresh = transformers.AutoModelForCausalLM.from_config(model.config)
    assert not fresh.model.boi.any() and not fresh.model.eoi.any()
    assert 0.01 < fresh.model.layers[0].mlp.up_proj.image.weight.std() < 0.03
    assert num_image_tokens(model.config.to_dict()) == NUM
    assert type(fresh.model.layers[1].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize(
    ("ids", "pixels", "message"),
    [
        (
            prompt(),
            images(2)[:, :1],
            r"pixel_values are \[2, 1, 4, 4\]; this model reads images of \[number, 3, 4, 4\]",
        ),
        (prompt(), images(1), r"rows hold \[6, 6\] tokens 96 for 1 images; each image needs 6 of them one behind"),
        (prompt()[:, :6], images(2), r"rows hold \[4, 4\] tokens 96"),
        (text(2, 9), images(2), r"rows hold \[0, 0\] tokens 96"),
    ],
)
def test_images_that_do_not_fit_their_tokens_are_refused(ids, pixels, message):
    with pytest.raises(ValueError, match=message):
        make_pair()[1](input_ids=ids, pixel_values=pixels)


def test_images_need_ids():
    with pytest.raises(ValueError, match="pixel_values need input_ids that say where they stand"):
        make_pair()[1](inputs_embeds=torch.zeros(1, 9, 32), pixel_values=images(1))


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {"model_type": "mistral", "layer_types": ["a"]}, {}])
def test_another_architecture_is_refused(config):
    with pytest.raises(ValueError, match=r"visual_experts stand beside the linear maps of llama, .*; this model is of"):
        visual_config(config, SIZES)
    assert set(FAMILIES) == {"llama", "mistral", "qwen2", "qwen3"}
