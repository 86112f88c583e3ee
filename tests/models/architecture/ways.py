"""What a model computes, asked for in the ways that a cache could make differ."""

import torch


def run_both_ways(model):
    """Logits [B, T, V] without a cache and in two steps with one, and greedy tokens [B, T]."""
    ids_BT = torch.randint(0, 97, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(input_ids=ids_BT, use_cache=False).logits
        first = model(input_ids=ids_BT[:, :9], use_cache=True)
        second = model(input_ids=ids_BT[:, 9:], past_key_values=first.past_key_values, use_cache=True)
        tokens = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=6, do_sample=False)
    return whole, torch.cat([first.logits, second.logits], dim=1), tokens
