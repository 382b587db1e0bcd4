"""A tiny random configuration of every architecture that the installed transformers knows.

A rule instead of a list of settings: every number of a default configuration that says how large the model is becomes
small, in nested configurations, too. What the rule cannot guess is in OWN.
"""

from typing import Any

import transformers as hf
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

__all__ = ["CAUSAL", "CLASSIFIERS", "VOCABULARY", "tiny_configuration"]

# model type → name of its class
CAUSAL: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CLASSIFIERS: dict[str, str] = dict(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

VOCABULARY = 96

# Names of a size, and what it becomes.
SMALL: dict[int, str] = {
    VOCABULARY: "vocab_size text_vocab_size vocab_size_per_layer_input decoder_vocab_size entity_vocab_size "
    "unpadded_vocab_size encoder_hash_byte_group_vocab",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers "
    "num_blocks depth num_decoder_layers conf_num_hidden_layers num_global_layers num_key_value_heads "
    "num_kv_heads swa_num_key_value_heads num_layers_per_stack num_experts_per_tok num_experts_per_token "
    "moe_k moe_topk max_window_layers n_layers_per_attn_res_block layer_group_size attn_layer_period "
    "attn_layer_offset num_hash_functions n_groups mamba_n_groups linear_num_key_heads index_n_heads "
    "o_groups hc_mult hc_count num_codebooks num_random_blocks L_cycles H_cycles "
    "global_attn_every_n_layers num_quantizers num_self_attends_per_block zero_expert_num",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
    "attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads conf_num_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts num_self_attention_heads "
    "num_cross_attention_heads block_size segment_means_seq_len num_landmarks local_attn_chunk_length "
    "lsh_attn_chunk_length local_transformer_stride attention_window",
    8: "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim kv_channels d_kv d_head attention_head_size "
    "global_head_dim swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim dim_head "
    "index_head_dim state_size mamba_d_state ssm_state_size rotary_dim d_rel sliding_window "
    "sliding_window_size attention_window_size window_size local_attention chunk_size mamba_chunk_size "
    "index_topk rel_extent time_step_rank mamba_dt_rank laurel_rank gated_norm_rank hc_lowrank "
    "chroma_length prompt_length ple_embed_dim attention_chunk_size index_block_size "
    "local_attention_window_len hidden_size_per_layer_input heads_per_ngram split_ngram_parts "
    "keep_window_size prompt_mid_dim conf_attention_chunk_size coordinate_size max_2d_position_embeddings "
    "relative_attention_num_buckets num_latents d_latents xpath_unit_hidden_size q_lora_rank kv_lora_rank "
    "o_lora_rank linear_attn_low_rank_dim",
    16: "mamba_head_dim mamba_d_head qk_head_dim",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim hidden_size_global "
    "embed_dim attention_hidden_size lru_width backbone_hidden_size adapter_out_dim input_embedding_size "
    "pooler_hidden_size out_hidden_size true_hidden_size cross_attention_hidden_size decoder_hidden_size "
    "entity_emb_size intra_bottleneck_size output_hidden_size vision_output_dim",
    48: "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff dff dim_ff ffn_hidden_size d_inner "
    "hidden_dim dense_intermediate_size intermediate_size_mlp feed_forward_size shared_intermediate_size "
    "mlp_dim",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    64: "max_position_embeddings n_positions max_seq_len n_ctx model_max_length max_source_positions "
    "max_target_positions",
    1: "n_group topk_group num_expert_group first_k_dense_replace num_kv_shared_layers moe_layer_start_index",
    101: "ngram_vocab_size_base",
}
SIZES = {name: size for size, names in SMALL.items() for name in names.split()}

# What the rule cannot guess, by model type: settings that depend on one another, and defaults that build no model.
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
HYBRID = {"num_hidden_layers": 4}  # of linear attention, with full attention in the fourth layer
TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"num_hidden_layers": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "dots3_note": {"text_config": {"num_key_value_heads": 4, "layer_types": ["indexed_attention"] * 2, "head_dim": 16}},
    "dots3_note_text": {"num_key_value_heads": 4, "layer_types": ["indexed_attention"] * 2, "head_dim": 16},
    "emu3": {"text_config": {"pad_token_id": 0}},
    "esm": {"vocab_size": VOCABULARY},
    "esmc": {"num_key_value_heads": 4, "vocab_size": VOCABULARY},
    "gemma3n_text": {"intermediate_size": [48, 48], "activation_sparsity_pattern": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": TWO_KINDS | {"mlp_layer_types": ["dense", "sparse"]},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 6, "shape_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"qk_head_dim": 16, "head_dim": 16},
    "mllama": {"text_config": {"pad_token_id": 0, "cross_attention_layers": []}},
    "mpnet": {"relative_attention_num_buckets": 32},
    "modernvbert": {"text_config": {"pad_token_id": 0}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5": {"text_config": HYBRID},
    "qwen3_5_moe": {"text_config": HYBRID},
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "qwen4_exp": {"text_config": HYBRID | INDEXER | {"indexer_compress_ratio": 2}},
    "qwen4_exp_text": HYBRID | INDEXER | {"indexer_compress_ratio": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "num_buckets": 4}
    | {"attn_layers": ["local", "local"], "hidden_size": 32},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY, "shape_embed_dim": 8}
    | {"pronunciation_embed_dim": 8},
    "t5": {"decoder_start_token_id": 0},
    "xlstm": {"embedding_dim": 32, "num_heads": 2, "chunk_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1], "mamba_headdim": 8}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
}


def _shrunk(default: dict[str, Any], nested: frozenset[str]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in default.items():
        if name in nested and isinstance(value, dict):
            small[name] = _shrunk(value, frozenset(key for key in value if key.endswith("_config")))
        elif name == "num_key_value_heads" and "kv_lora_rank" in default:  # latent attention has one for each head
            small[name] = SIZES["num_attention_heads"]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > SIZES[name]:
            small[name] = SIZES[name]
    return small


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def tiny_configuration(kind: str, **settings: Any) -> Any:
    """The configuration of a small model of this type, its beginning token 1, end token 2, padding token 0.

    Args:
        kind: the model type.
        settings: over those that the rule finds.
    """
    configuration = hf.CONFIG_MAPPING[kind]
    nested = frozenset(getattr(configuration, "sub_configs", {}))
    own = OWN.get(kind, {})
    small = _shrunk(configuration().to_dict(), nested)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return configuration(**_merged(_merged(_merged(small, special), own), settings))
