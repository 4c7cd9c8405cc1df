"""Arguments that make a configuration small: two layers of four heads of 16, and windows shorter than what is run."""

from configurations import constructor_names
from special import SPECIAL
from transformers import PreTrainedConfig

WIDTH = set(
    "hidden_size d_model n_embd dim embed_dim hidden_dim encoder_hidden_size decoder_hidden_size embedding_size "
    "projection_dim emb_dim attention_hidden_size mm_hidden_size output_dim width adapter_hidden_size lstm_hidden d_embed "
    "d_head_total encoder_dim decoder_dim model_dim".split()
)
NARROW = set("embedding_size projection_dim output_dim width adapter_hidden_size".split())
OF_HEADS = set("hidden_size d_model n_embd dim embed_dim hidden_dim encoder_hidden_size decoder_hidden_size".split())
HEADS = set(
    "num_attention_heads n_head num_heads encoder_attention_heads decoder_attention_heads attention_heads n_heads "
    "encoder_num_attention_heads decoder_num_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
    "num_self_attention_heads num_cross_attention_heads nheads".split()
)
KEY_HEADS = set(
    "num_key_value_heads decoder_num_key_value_heads encoder_num_key_value_heads n_kv_heads num_kv_heads "
    "multi_query_group_num".split()
)
LAYERS = set(
    "num_hidden_layers n_layer num_layers encoder_layers decoder_layers n_layers depth encoder_num_hidden_layers "
    "decoder_num_hidden_layers num_encoder_layers num_decoder_layers encoder_n_layers num_blocks "
    "num_self_attends_per_block l_layers r_layers x_layers relational_layers cross_layers language_layers "
    "num_adapter_layers qformer_layers layers".split()
)
FEED_FORWARD = set(
    "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner intermediate_dim moe_intermediate_size "
    "encoder_intermediate_size decoder_intermediate_size dim_feedforward shared_expert_intermediate_size hidden_dim_mlp "
    "d_inner shared_intermediate_size mlp_dim encoder_feedforward_dim decoder_feedforward_dim intermediate_size_mlp "
    "dense_intermediate_size".split()
)
EXPERTS = set("num_local_experts num_experts n_routed_experts moe_num_experts".split())
AT_MOST = dict(
    num_experts_per_tok=2, moe_topk=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32,
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, moe_k=2, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4, moe_layer_start_index=1, head_dim=16, global_head_dim=32, d_kv=16,
    attention_head_size=16, sliding_window=6, attention_window_size=6, attention_chunk_size=6, local_attention=8,
    max_window_layers=1,
)  # fmt: skip
ALWAYS = {"num_experts_per_tok", "moe_topk", "moe_k", "n_group", "topk_group", "first_k_dense_replace"}
STAGES = {"depths", "encoder_depths", "stage_depths", "layers_per_stage", "num_blocks_per_stage", "blocks_per_stage"}
VOCABULARY = 2000

#: Ways to shrink, tried in this order until a model can be made and run.
WAYS = ("small", "eight layers", "large vocabulary", "head size kept", "layers only", "as is")


def arguments(kind, way):
    """The arguments for one way, with what a model type needs beyond."""
    if way == "as is":
        return {}
    return {**Shrink(kind, way).arguments(), **SPECIAL.get(kind.__name__, {})}


class Shrink:
    """One configuration class, shrunk one way."""

    def __init__(self, kind, way, depth=0):
        self.kind, self.way, self.depth = kind, way, depth
        self.values = {k: v for k, v in vars(kind()).items() if not k.startswith("_")}
        self.small_vocabulary = way in ("small", "eight layers")
        self.full = self.small_vocabulary or way == "large vocabulary"
        self.layers = 8 if way == "eight layers" else 2
        self.new_heads = 4 if self.full else 2
        heads = (v for k, v in self.values.items() if k in HEADS and type(v) is int and v > 0)
        self.heads = next(heads, None)
        self.hidden = next((self.values[k] for k in ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
                            if type(self.values.get(k)) is int), None)  # fmt: skip
        self.head_dim = self.values.get("head_dim")
        if type(self.head_dim) is not int:
            self.head_dim = self.hidden // self.heads if self.heads and self.hidden else None
        stages = "depths" in self.values or "encoder_depths" in self.values
        self.hierarchical = stages and type(self.values.get("num_heads", 1)) is not int

    def arguments(self):
        known, found = constructor_names(self.kind), {}
        for name, value in self.values.items():
            if isinstance(value, PreTrainedConfig):
                new = self.inner(name, value, known)
            elif name == "use_sliding_window":
                new = True
            elif isinstance(value, (list, tuple)):
                whole = name in STAGES and all(type(x) is int for x in value)
                new = [min(x, 2) for x in value] if whole else None
            else:
                new = self.number(name, value) if type(value) is int else None
            if new is not None:
                found[name] = new
        written = {v: k for k, v in (getattr(self.kind, "attribute_map", None) or {}).items()}
        return {written[k] if k not in known and written.get(k) in known else k: v for k, v in found.items()}

    def inner(self, name, config, known):
        """A configuration inside: its differences from its defaults stay, derived values are derived again."""
        sub = name in getattr(self.kind, "sub_configs", {}) and self.depth < 4
        if name == "backbone_config" or not (sub or name in known):
            return None
        try:
            shrunk = Shrink(type(config), self.way, self.depth + 1).arguments()
            if config.model_type:
                shrunk["model_type"] = config.model_type
            derived = ("layer_types", "transformers_version", "mlp_layer_types")
            kept = config.to_diff_dict().items()
            return {**{k: v for k, v in kept if k not in derived and not isinstance(v, dict)}, **shrunk}
        except Exception:
            return None  # stays as it is

    def number(self, name, value):
        """The smaller number, or None."""
        if self.small_vocabulary and name.endswith("vocab_size"):
            return VOCABULARY if value > VOCABULARY else None
        ids = ("_token_id", "_token_index", "_start_id", "_end_id")
        if self.small_vocabulary and name.endswith(ids) and value >= VOCABULARY:
            return VOCABULARY - 100 + sum(map(ord, name)) % 97
        if name in LAYERS:
            return self.layers if value > self.layers else None
        if name in EXPERTS:
            return 4 if value > 4 else None
        if name in ALWAYS:
            return min(value, AT_MOST[name])
        if name == "image_size" and value > 256:
            return next(
                (n for n in (256, 224) if value % n == 0), value // 4 if value > 600 and value % 4 == 0 else None
            )
        if name == "max_source_positions" and "num_mel_bins" in self.values and value >= 1500:
            return 64
        return None if self.way == "layers only" or self.hierarchical else self.size(name, value)

    def size(self, name, value):
        if name in WIDTH and value > 64:
            narrow = name in NARROW or self.full or not self.head_dim or name not in OF_HEADS or value != self.hidden
            return 64 if narrow else self.new_heads * self.head_dim
        if name in HEADS and value > self.new_heads:
            return self.new_heads
        if name in KEY_HEADS and value:
            grouped = self.heads is not None and value < self.heads
            return (2 if value > 1 and self.new_heads > 2 else 1) if grouped else self.new_heads
        if name in FEED_FORWARD and value > 128:
            return 128
        if name in ("head_dim", "global_head_dim", "d_kv", "attention_head_size"):
            return AT_MOST[name] if self.full else None
        return min(value, AT_MOST[name]) if name in AT_MOST and self.full else None
