"""Tiny configs of many architectures, one a row of the identity matrix; four blocks each, so that two groups fit."""

_COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OLD = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_WINDOW = {"head_dim": 8, "sliding_window": 8}


def _like_llama(model_type: str, **settings) -> dict:
    return {**_COMMON, "model_type": model_type, **settings}


def _old(model_type: str, **settings) -> dict:
    return {**_OLD, "model_type": model_type, **settings}


_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_OPT = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}  # fmt: skip

EXACT = {
    "Llama": _like_llama("llama", tie_word_embeddings=False),
    "Llama, tied": _like_llama("llama", tie_word_embeddings=True),
    "Llama, biases": _like_llama("llama", attention_bias=True, mlp_bias=True),
    "Mistral": _like_llama("mistral", sliding_window=8),
    "Mixtral": _like_llama("mixtral", num_local_experts=4),
    "Qwen2": _like_llama("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "Qwen2-MoE": _like_llama(
        "qwen2_moe", shared_expert_intermediate_size=16, decoder_sparse_step=2, mlp_only_layers=[1], **_EXPERTS
    ),
    "Qwen3": _like_llama("qwen3", head_dim=8),
    "Qwen3-MoE": _like_llama("qwen3_moe", head_dim=8, mlp_only_layers=[1], **_EXPERTS),
    "Qwen3-Next": _like_llama(
        "qwen3_next", head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, shared_expert_intermediate_size=16, full_attention_interval=2, **_EXPERTS,
    ),
    "Gemma": _like_llama("gemma", head_dim=8),
    "Gemma 2": _like_llama("gemma2", **_WINDOW),
    "Gemma 3": _like_llama("gemma3_text", sliding_window_pattern=3, **_WINDOW),
    "Gemma 3, with vision": {
        "model_type": "gemma3",
        "text_config": _like_llama("gemma3_text", sliding_window_pattern=3, **_WINDOW),
        # As many blocks as the text has: the list to grow is not told by its length.
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
        "mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62,
    },
    "Phi": _like_llama("phi", partial_rotary_factor=0.5),
    "Phi-3": _like_llama("phi3"),
    "Phi-3.5-MoE": _like_llama("phimoe", num_local_experts=4, num_experts_per_tok=2),
    "GPT-2": _old("gpt2", **_GPT2),
    "GPT-J": _old("gptj", rotary_dim=4, **_GPT2),
    "GPT-NeoX": _like_llama("gpt_neox"),
    "GPT-NeoX, sequential": _like_llama("gpt_neox", use_parallel_residual=False),
    "GPT-BigCode": _old("gpt_bigcode", **_GPT2),
    "GPT-OSS": _like_llama("gpt_oss", num_local_experts=4, num_experts_per_tok=2, **_WINDOW),
    "StarCoder2": _like_llama("starcoder2", use_bias=True),
    "OLMo": _like_llama("olmo"),
    "OLMo 2": _like_llama("olmo2"),
    "OLMoE": _like_llama("olmoe", num_experts=4, num_experts_per_tok=2),
    "Cohere": _like_llama("cohere"),
    "Cohere 2": _like_llama("cohere2", sliding_window=8, sliding_window_pattern=2),
    "Granite": _like_llama("granite", residual_multiplier=0.22),
    "Granite-MoE": _like_llama("granitemoe", num_local_experts=4, num_experts_per_tok=2),
    "SmolLM3": _like_llama("smollm3", no_rope_layer_interval=2),
    "Falcon": _old("falcon", bias=True, **_FALCON),
    "Falcon, new": _old("falcon", num_kv_heads=2, new_decoder_architecture=True, **_FALCON),
    "DeepSeek-V2": _like_llama("deepseek_v2", topk_method="greedy", **_LATENT),
    "DeepSeek-V3": _like_llama("deepseek_v3", **_LATENT),
    "GLM": _like_llama("glm", head_dim=8),
    "GLM-4": _like_llama("glm4", head_dim=8),
    "StableLM": _like_llama("stablelm"),
    "MPT": _old("mpt", d_model=32, n_layers=4, n_heads=4, max_seq_len=64),
    "OPT": _old("opt", **_OPT),
    "BLOOM": _old("bloom", hidden_size=32, n_layer=4, n_head=4),
    "Nemotron": _like_llama("nemotron"),
    "EXAONE 4": _like_llama("exaone4", sliding_window=8, sliding_window_pattern=2),
    "Llama 4": _like_llama(
        "llama4_text", intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, head_dim=8,
        interleave_moe_layer_step=2,
    ),
    "LFM2": _like_llama("lfm2", full_attn_idxs=[1, 3], block_auto_adjust_ff_dim=False),
    "Seed-OSS": _like_llama("seed_oss", head_dim=8),
    "Mamba": _old("mamba", hidden_size=32, num_hidden_layers=4, state_size=8),
}  # fmt: skip

REFUSED = {
    "OPT, norm after the sum": (_old("opt", do_layer_norm_before=False, **_OPT), "cannot be made an identity block"),
    "Gemma 3n": (_like_llama("gemma3n_text", num_kv_shared_layers=0, **_WINDOW), "expected one list of 4 blocks"),
    "JetMoE": (
        _old(
            "jetmoe", hidden_size=32, num_hidden_layers=4, num_key_value_heads=2, kv_channels=8, intermediate_size=16,
            num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        ),
        "does not run without weights",
    ),
}  # fmt: skip
