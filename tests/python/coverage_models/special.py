"""Arguments that single configuration classes need beyond being shrunk."""

_SERIES = dict(prediction_length=4, context_length=8, lags_sequence=[1, 2, 3], num_time_features=1)
_GROUPS = dict(q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, intermediate_groups=2, output_groups=2)
_ROPE = dict(rope_type="default", rope_theta=1e4)
_THREE_WAYS = dict(rope_parameters=dict(**_ROPE, mrope_section=[2, 3, 3]))
_HEADS_OF_16 = dict(head_dim=16)

SPECIAL = dict(
    AutoformerConfig=dict(**_SERIES, label_length=4, moving_average=3),
    BambaConfig=dict(attn_layer_indices=[1]),
    BigBirdConfig=dict(block_size=4, num_random_blocks=1),
    BigBirdPegasusConfig=dict(block_size=4, num_random_blocks=1),
    DeepseekV2Config=dict(num_experts_per_tok=2, n_routed_experts=4, n_group=1, topk_group=1),
    DetrConfig=dict(use_pretrained_backbone=False),
    Dots1Config=dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1),
    EsmConfig=dict(vocab_size=33, pad_token_id=1, mask_token_id=32),
    FlaubertConfig=dict(emb_dim=64, n_layers=2, n_heads=4),
    FunnelConfig=dict(block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=128),
    GPTNeoConfig=dict(attention_types=[[["global", "local"], 1]], num_layers=2),
    Gemma3nTextConfig=dict(num_kv_shared_layers=0, vocab_size_per_layer_input=2000, laurel_rank=8),
    Gemma4TextConfig=dict(vocab_size_per_layer_input=2000),
    Glm4vMoeTextConfig=dict(rope_parameters=dict(**_ROPE, partial_rotary_factor=0.5, mrope_section=[1, 1, 2])),
    Glm4vTextConfig=_THREE_WAYS,
    GlmImageTextConfig=_THREE_WAYS,
    GraniteMoeHybridConfig=dict(layer_types=["mamba", "attention"]),
    HunYuanDenseV1Config=_HEADS_OF_16,
    HunYuanMoEV1Config=dict(**_HEADS_OF_16, moe_topk=2, num_experts=4),
    HunYuanVLTextConfig=_HEADS_OF_16,
    InformerConfig=_SERIES,
    LEDConfig=dict(attention_window=[8, 8]),
    LongcatFlashConfig=dict(ffn_hidden_size=128, expert_ffn_hidden_size=64),
    LongformerConfig=dict(attention_window=[8, 8]),
    MinistralConfig=_HEADS_OF_16,
    NemotronConfig=_HEADS_OF_16,
    OPTConfig=dict(word_embed_proj_dim=64),
    ReformerConfig=dict(
        axial_pos_shape=[4, 4], axial_pos_embds_dim=[32, 32], lsh_attn_chunk_length=8, local_attn_chunk_length=8,
        attn_layers=["local", "lsh"], is_decoder=True,
    ),
    SqueezeBertConfig=dict(hidden_size=64, embedding_size=64, **_GROUPS),
    SwitchTransformersConfig=dict(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
    TimeSeriesTransformerConfig=_SERIES,
    XLMConfig=dict(emb_dim=64, n_layers=2, n_heads=4),
    XmodConfig=dict(default_language="en_XX"),
)  # fmt: skip
