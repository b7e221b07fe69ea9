"""Which small value each spelling of a size takes in a tiny configuration: data, no code."""

from __future__ import annotations

from typing import Any

WIDTH, HEADS, GROUPS, DEPTH, INNER, WORDS, HEAD = 32, 4, 2, 2, 48, 100, 8

# Fields of one meaning under the spellings that configurations use.
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd embed_dim dim emb_dim embedding_dim encoder_hidden_size hidden_size_global true_hidden_size "
        "word_embed_proj_dim lru_width attention_hidden_size hidden_dim out_hidden_size pooler_hidden_size pooler_output_size "
        "pronunciation_embed_dim shape_embed_dim projection_size project_dim vision_output_dim bottleneck_size intra_bottleneck_size "
        "intra_size d_latents cross_attention_hidden_size backbone_hidden_size d_embed prediction_head_size fusion_hidden_size "
        "decoder_hidden_size mamba_d_ssm unified_width".split(),
        WIDTH,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads linear_num_key_heads "
        "linear_num_heads num_self_attention_heads num_cross_attention_heads decoder_num_attention_heads index_n_heads "
        "mamba_num_heads mamba_n_heads n_mamba_heads".split(),
        HEADS,
    ),
    **dict.fromkeys("num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups attn_groups".split(), GROUPS),
    **dict.fromkeys(
        "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
        "max_window_layers num_blocks num_spatial_layers num_global_layers num_layers_per_stack num_self_attends_per_block depth "
        "decoder_num_hidden_layers".split(),
        DEPTH,
    ),
    **dict.fromkeys(
        "intermediate_size moe_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff dff d_inner dim_ff ffn_hidden_size n_inner "
        "mlp_dim shared_expert_intermediate_size shared_intermediate_size shared_experts_intermediate_size intermediate_size_mlp "
        "expert_ffn_hidden_size dense_intermediate_size feed_forward_size moe_shared_expert_intermediate_size "
        "decoder_intermediate_size".split(),
        INNER,
    ),
    **dict.fromkeys("head_dim d_kv d_head dim_head kv_channels attention_head_size swa_head_dim global_head_dim attention_head_dim".split(), HEAD),
    **dict.fromkeys("linear_key_head_dim linear_value_head_dim linear_head_dim v_head_dim qk_head_dim index_head_dim".split(), HEAD),
    **dict.fromkeys("mamba_d_head mamba_head_dim mamba_headdim".split(), 16),
    **dict.fromkeys("qk_rope_head_dim qk_nope_head_dim rotary_dim".split(), 4),
    **dict.fromkeys("q_lora_rank kv_lora_rank o_lora_rank embedding_size input_embedding_size embedding_rank projection_dim".split(), 16),
    **dict.fromkeys("vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size decoder_vocab_size entity_vocab_size".split(), WORDS),
    **dict.fromkeys("pronunciation_vocab_size shape_vocab_size unpadded_vocab_size".split(), WORDS),
    **dict.fromkeys(
        "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions max_seq_len max_encoder_position_embeddings "
        "max_decoder_position_embeddings original_max_position_embeddings context_length max_2d_position_embeddings".split(),
        64,
    ),
    **dict.fromkeys("sliding_window attention_window_size sliding_window_size local_attention".split(), 4),
    **dict.fromkeys("num_experts n_routed_experts num_local_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts moe_top_k".split(), 2),
    **dict.fromkeys("n_group topk_group num_expert_group n_shared_experts first_k_dense_replace n_groups mamba_n_groups".split(), 1),
    **dict.fromkeys("mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank".split(), 8),
    **dict.fromkeys("chunk_size mamba_chunk_size block_size".split(), 8),
    **dict.fromkeys("relative_attention_num_buckets position_bias_num_buckets num_buckets".split(), 8),
    **dict.fromkeys("relative_attention_max_distance position_bias_max_distance relative_max_distance".split(), 12),
    "hidden_size_per_layer_input": 8, "laurel_rank": 8, "num_kv_shared_layers": 0, "expert_capacity": 64, "entity_emb_size": 16,
    "output_embedding_size": 32, "hidden_sizes": None, "embedding_size_per_head": 8, "index_topk": 4, "compressor_rank": 8,
    "query_pre_attn_scalar": 24, "image_size": 32, "patch_size": 8, "pretrain_image_size": 32, "router_hidden_size": 16, "d_rel": 4,
    "rel_extent": 16, "num_labels": 5, "num_register_tokens": 3, "ple_embed_dim": 16, "ngram_vocab_size_base": 100, "hc_lowrank": 8,
    "split_ngram_parts": 1, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "zero_expert_num": 2, "adapter_rank": 4,
    "num_latents": 8, "num_detection_tokens": 4, "encoder_stride": 8,
}  # fmt: skip
