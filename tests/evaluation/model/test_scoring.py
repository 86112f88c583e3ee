import pytest
import torch

from pipeline.evaluation.model.scoring import IGNORED, TokenScorer, batches

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
}


def by_hand(model, row, target):
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([row])).logits[0, -len(target) :].log_softmax(-1)
    return logprobs[range(len(target)), target], logprobs.argmax(-1).tolist() == list(target)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_models_own_with_and_without_a_shared_prefix(tiny, family):
    model = tiny(family, **FAMILIES[family])
    scorer = TokenScorer(model)
    torch.manual_seed(1)
    prefixes = torch.randint(3, 300, (2, 11))
    suffixes = [torch.randint(3, 300, (n,)).tolist() for n in (3, 7, 1, 12, 5)]
    owners, targets = [0, 0, 0, 1, 1], [row[-2:] for row in suffixes]
    rows = [prefixes[owner].tolist() + suffix for owner, suffix in zip(owners, suffixes, strict=True)]
    whole = scorer.score(rows, targets)
    for row, target, found in zip(rows, targets, whole, strict=True):
        expected, greedy = by_hand(model, row, target)
        torch.testing.assert_close(found.logprobs, expected, rtol=1e-5, atol=2e-5)
        assert found.greedy == greedy
    assert scorer.can_share
    shared = scorer.score(suffixes, targets, scorer.prefix(prefixes, [3, 2]))
    for a, b in zip(whole, shared, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-5, atol=2e-5)


def test_known_heads_are_applied_by_hand_and_unknown_ones_by_the_model(tiny):
    separate = {f: TokenScorer(tiny(f, **FAMILIES[f]))._separate_head for f in ("llama", "gemma2", "cohere", "granite")}
    assert separate == {"llama": True, "gemma2": True, "cohere": False, "granite": False}


def test_a_model_without_a_cache_that_splits_is_run_whole(tiny):
    scorer = TokenScorer(tiny("mamba", num_hidden_layers=2, state_size=4))
    assert not scorer.can_share
    expected, _ = by_hand(scorer.model, [5, 6, 7, 8], [9, 10])
    torch.testing.assert_close(scorer.score([[5, 6, 7, 8]], [[9, 10]])[0].logprobs, expected, rtol=1e-5, atol=2e-5)


def test_ignored_positions_are_left_out(llama):
    scorer = TokenScorer(llama)
    row = [5, 6, 7, 8, 9]
    all_of_it = scorer.score([row], [[6, 7, 8, 9, 10]])[0].logprobs
    some = scorer.score([row, row[:2]], [[6, IGNORED, 8, IGNORED, 10], [IGNORED, 7]])
    torch.testing.assert_close(some[0].logprobs, all_of_it[[0, 2, 4]], rtol=0, atol=1e-5)
    torch.testing.assert_close(some[1].logprobs, all_of_it[[1]], rtol=0, atol=1e-5)


def test_batches_keep_within_the_budget_and_lose_nothing():
    lengths = [3, 50, 8, 8, 120, 1, 20, 7]
    groups = list(batches(list(range(8)), lengths, 64))
    assert sorted(i for group in groups for i in group) == list(range(8))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 64 for g in groups)
    assert [4] in groups
