"""Random bases of models of our own, and what models compute, asked for in the ways that a cache could change."""

import torch
import transformers

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "pad_token_id": 0,
}  # fmt: skip
VARIANTS = {
    "llama": {},
    "llama with biases, not tied": {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": False},
    "mistral with a window": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
}


def random_base(variant, dtype, **more):
    """A random model with non-zero biases."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        **{"model_type": variant.split()[0], **SIZES, **VARIANTS[variant], **more}
    )
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return base


def run_both_ways(model):
    """Logits [B, T, V] without a cache and in two steps with one, and greedy tokens [B, T]."""
    ids_BT = torch.randint(0, 97, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(input_ids=ids_BT, use_cache=False).logits
        first = model(input_ids=ids_BT[:, :9], use_cache=True)
        second = model(input_ids=ids_BT[:, 9:], past_key_values=first.past_key_values, use_cache=True)
        tokens = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=6, do_sample=False)
    return whole, torch.cat([first.logits, second.logits], dim=1), tokens


def reloaded(model, folder):
    """The model as it is saved and loaded again, which keeps every parameter and every bit."""
    model.save_pretrained(folder)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = dict(model.named_parameters()), dict(again.named_parameters())
    assert before.keys() == after.keys() and again.dtype == model.dtype
    assert all(torch.equal(before[name], after[name]) for name in before)
    return again
