"""Every kind of Transformers' models with attn_implementation="signflash": right, or refused with a sentence."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

ENCODER = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=60, pad_token_id=0
)  # fmt: skip
DECODER = dict(**ENCODER, num_key_value_heads=2, head_dim=16)
BART = dict(
    d_model=64, vocab_size=60, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
QUIET = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
T5 = dict(
    d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=60, pad_token_id=0,
    decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=8,
)  # fmt: skip
VISION = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8
)


def kinds(package, *names):
    """Classes of transformers.models; skips where this Transformers has them not."""
    try:
        modules = [
            importlib.import_module(f"transformers.models.{package}.{x}_{package}")
            for x in ("configuration", "modeling")
        ]
        return [next(getattr(m, name) for m in modules if hasattr(m, name)) for name in names]
    except (ImportError, StopIteration):
        pytest.skip(f"this Transformers has no {package}")


def make(package, config, model, implementation="signflash", **settings):
    config, model = kinds(package, config, model)
    config = config(**settings)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return model(config).float().eval()


def ids(seqlen=12, first=5):
    return torch.randint(first, 60, (2, seqlen), generator=torch.Generator().manual_seed(1))


def short(seqlen=12, counts=8):
    mask = torch.ones(2, seqlen, dtype=torch.long)
    mask[1, counts:] = 0
    return mask


def state(output):
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


# Models whose module says another thing about causality than their mask, or nothing.
RIGHT = {
    "llama": ("LlamaConfig", "LlamaModel", DECODER),
    "nllb_moe": ("NllbMoeConfig", "NllbMoeModel", dict(**BART, **QUIET, num_experts=4, expert_capacity=64)),
    "align": ("AlignTextConfig", "AlignTextModel", ENCODER),
    "clap": ("ClapTextConfig", "ClapTextModel", ENCODER),
    "splinter": ("SplinterConfig", "SplinterModel", ENCODER),
    "aimv2": ("Aimv2TextConfig", "Aimv2TextModel", dict(ENCODER, max_position_embeddings=16, eos_token_id=59)),
    # Windows of layers that are not there, or longer than the sequence.
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeModel",
        dict(
            DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
        ),
    ),
    "modernbert": ("ModernBertConfig", "ModernBertModel", dict(ENCODER, local_attention=32)),
    "mistral": ("MistralConfig", "MistralModel", dict(DECODER, sliding_window=12)),
    # A mask of numbers that is padding.
    "layoutlm": ("LayoutLMConfig", "LayoutLMModel", ENCODER),
    # Biases of positions, with gradients of their tables.
    "t5": ("T5Config", "T5Model", T5),
    "layoutlmv3": (
        "LayoutLMv3Config",
        "LayoutLMv3Model",
        dict(ENCODER, input_size=32, coordinate_size=12, shape_size=8, rel_pos_bins=8, rel_2d_pos_bins=8, visual_embed=False),
    ),
    # Scores that saturate; sinks that learn.
    "gemma2": (
        "Gemma2Config",
        "Gemma2Model",
        dict(DECODER, attn_logit_softcapping=0.3, sliding_window=5, query_pre_attn_scalar=4, attention_dropout=0.0),
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssModel",
        dict(DECODER, sliding_window=5, num_local_experts=2, num_experts_per_tok=1, attention_dropout=0.0),
    ),
}


#: Windows and chunks shorter than the sequence.
SLIDING = dict(DECODER, sliding_window=5)
LOCAL = {
    "mistral": ("MistralConfig", "MistralModel", SLIDING),
    "mixtral": ("MixtralConfig", "MixtralModel", dict(SLIDING, num_local_experts=2)),
    "starcoder2": ("Starcoder2Config", "Starcoder2Model", SLIDING),
    "phi3": ("Phi3Config", "Phi3Model", SLIDING),
    "qwen2": ("Qwen2Config", "Qwen2Model", dict(SLIDING, use_sliding_window=True, max_window_layers=1)),
    "gemma3": ("Gemma3TextConfig", "Gemma3TextModel", dict(SLIDING, layer_types=["sliding_attention", "full_attention"])),
    "cohere2": ("Cohere2Config", "Cohere2Model", dict(SLIDING, layer_types=["sliding_attention", "full_attention"])),
    "olmo3": ("Olmo3Config", "Olmo3Model", dict(SLIDING, layer_types=["sliding_attention", "full_attention"])),
    "modernbert": ("ModernBertConfig", "ModernBertModel", dict(ENCODER, local_attention=6, global_attn_every_n_layers=2)),
    "llama4": (
        "Llama4TextConfig",
        "Llama4TextModel",
        dict(
            DECODER, attention_chunk_size=5, layer_types=["chunked_attention", "full_attention"], num_local_experts=2,
            intermediate_size_mlp=96, moe_layers=[],
        ),
    ),
}  # fmt: skip


def padding(kind, seqlen=12):
    """Of two rows, the second."""
    counts = torch.ones(2, seqlen, dtype=torch.long)
    if kind is not None:
        counts[1, 8:] = 0
        counts = counts.flip(1) if kind == "left" else counts
    return counts


def outputs_and_gradients(made, counts, **inputs):
    """Of a loss on the positions that count."""
    out = state(made(**inputs))
    if counts is not None:
        out = out * counts[..., None]
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return out, {n: p.grad for n, p in made.named_parameters() if p.grad is not None}


def check_equal(results):
    (expected, gradients), (got, ours) = results
    assert torch.allclose(got, expected, atol=2e-5, rtol=1e-4)
    assert gradients.keys() == ours.keys()
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("kind", [None, "left", "right"])
@pytest.mark.parametrize("package", LOCAL)
def test_windows_and_chunks_are_eagers(package, kind):
    config, model, settings = LOCAL[package]
    results = []
    for implementation in ("eager", "signflash"):
        made = make(package, config, model, implementation, **settings)
        counts = padding(kind)
        given = dict(input_ids=ids(), attention_mask=None if kind is None else counts)
        results.append(outputs_and_gradients(made, counts, **given))
    check_equal(results)
    # They hide something.
    settings = {k: v for k, v in settings.items() if k not in ("sliding_window", "local_attention", "attention_chunk_size")}
    longer = dict(sliding_window=64, local_attention=64, attention_chunk_size=64)
    longer = {k: v for k, v in longer.items() if k in LOCAL[package][2]}
    whole = state(make(package, config, model, **settings, **longer)(ids())).detach()
    assert not torch.allclose(whole[0], results[1][0][0], atol=1e-3)


def test_windows_to_both_sides_of_a_shortened_padded_sequence_are_eagers():
    """Moonshine's streaming encoder has windows of its own, and a mask for what its convolutions leave of the sequence.
    Its padded positions are zeros here, another number in eager attention, and read by nobody."""
    names = "moonshine_streaming", "MoonshineStreamingConfig", "MoonshineStreamingModel"
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    sound, counts = torch.randn(2, 8000, generator=torch.Generator().manual_seed(3)), torch.ones(2, 8000, dtype=torch.long)
    counts[1, 4000:] = 0
    results, encoded = [], []
    for implementation in ("eager", "signflash"):
        encoder = dict(sizes, sliding_windows=((4, 3), (5, 0)))
        made = make(*names, implementation, **sizes, vocab_size=60, encoder_config=encoder)
        states = made.encoder(sound, attention_mask=counts)
        assert states.attention_mask.sum(-1).tolist() == [25, 16]
        encoded.append(states.last_hidden_state * states.attention_mask[..., None])
        given = dict(input_values=sound, attention_mask=counts, decoder_input_ids=ids(6))
        results.append(outputs_and_gradients(made, None, **given))
    check_equal(results)
    assert torch.allclose(*encoded, atol=2e-5, rtol=1e-4)


PACKED = {k: LOCAL[k] for k in ("mistral", "qwen2", "gemma3", "llama4")}
PACKED["llama"] = RIGHT["llama"]


@pytest.mark.parametrize("given", ["positions", "lengths", "both"])
@pytest.mark.parametrize("package", PACKED)
def test_packed_sequences_are_eagers_and_those_of_each_alone(package, given):
    """Positions that start anew, and what Transformers' collator hands over for FlashAttention."""
    config, model, settings = PACKED[package]
    tokens, lengths = ids(20)[:1], (7, 1, 12)
    starts = torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    positions = dict(position_ids=torch.cat([torch.arange(n) for n in lengths])[None])
    packing = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=12, max_length_k=12)
    if given == "lengths" and package == "llama4":
        pytest.skip("its chunks begin where the positions say")
    inputs = dict(positions={**positions}, lengths={**packing}, both={**positions, **packing})[given]
    eager, ours = (make(package, config, model, implementation, **settings) for implementation in ("eager", "signflash"))
    results = [
        outputs_and_gradients(eager, None, input_ids=tokens, use_cache=False, **positions),
        outputs_and_gradients(ours, None, input_ids=tokens, use_cache=False, **inputs),
    ]
    check_equal(results)
    alone = [state(ours(tokens[:, a:b], use_cache=False)) for a, b in zip(starts.tolist(), starts.tolist()[1:])]
    assert torch.allclose(torch.cat(alone, 1), results[1][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("package", RIGHT)
def test_outputs_and_gradients_are_eagers(package, padded):
    config, model, settings = RIGHT[package]
    results = []
    for implementation in ("eager", "signflash"):
        made = make(package, config, model, implementation, **settings)
        inputs = dict(input_ids=ids(), attention_mask=short() if padded else None)
        if getattr(made.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids(10)
        results.append(
            outputs_and_gradients(made, short() if padded and "decoder_input_ids" not in inputs else None, **inputs)
        )
    check_equal(results)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("package", ["llama", "nllb_moe", "gpt2"])
def test_no_position_sees_a_later_one(package, padded):
    gpt2 = ("GPT2Config", "GPT2Model", dict(n_embd=64, n_layer=2, n_head=4, vocab_size=60, n_positions=16))
    config, model, settings = gpt2 if package == "gpt2" else RIGHT[package]
    made = make(package, config, model, **settings)
    both = getattr(made.config, "is_encoder_decoder", False)
    name = "decoder_input_ids" if both else "input_ids"
    inputs = dict(input_ids=ids(), attention_mask=short() if padded else None, **({name: ids()} if both else {}))
    changed = dict(inputs, **{name: inputs[name].clone()})
    changed[name][0, -1] += 1 if inputs[name][0, -1] < 59 else -1
    with torch.no_grad():
        moved = (state(made(**inputs)) - state(made(**changed)))[0].abs().amax(-1)
    assert moved[-1] > 1e-3
    assert float(moved[:-1].max()) == 0.0


@pytest.mark.parametrize("token_types", [None, 0, 1])
def test_images_before_a_text_are_seen_as_eager_sees_them(token_types):
    """PaliGemma makes the mask, whose prefix is seen by all, and the language model inside it asks for a causal one."""
    config, model = kinds("paligemma", "PaliGemmaConfig", "PaliGemmaModel")
    results = []
    for implementation in ("eager", "signflash"):
        settings = config(
            vision_config=dict(VISION, image_size=16, model_type="siglip_vision_model", vision_use_head=False),
            text_config=dict(DECODER, model_type="gemma"), image_token_id=59, projection_dim=64,
        )  # fmt: skip
        settings._attn_implementation = implementation
        torch.manual_seed(0)
        made = model(settings).float().eval()
        tokens = ids().clamp(max=58)
        tokens[:, :4] = 59
        types = None if token_types is None else torch.full_like(tokens, token_types)
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            results.append(made(input_ids=tokens, pixel_values=pixels, token_type_ids=types).last_hidden_state)
    assert torch.allclose(*results, atol=2e-5, rtol=1e-4)


def test_no_model_takes_a_branch_for_flash_attn():
    """Packed images: one call each, where flash_attn's branch hands over cu_seq_lens."""
    results = []
    for implementation in ("eager", "signflash"):
        sizes = dict(depth=2, embed_dim=64, hidden_size=64, num_heads=4, patch_size=14)
        model = make(
            "qwen2_vl", "Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel", implementation, **sizes
        )
        grid = torch.tensor([[1, 4, 4], [1, 4, 8]])
        x = torch.randn(48, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            out = model(x, grid_thw=grid)
        results.append(out if isinstance(out, torch.Tensor) else out[0])
    assert torch.allclose(results[0], results[1], atol=2e-5)
    assert "flash" not in model.config._attn_implementation


def test_larger_head_dims_are_refused_and_a_longer_value_is_computed(device):
    from signflash._transformers import attention_forward

    def tensors(head_dim, value_dim):
        generator = torch.Generator().manual_seed(0)
        sizes = (head_dim, head_dim, value_dim)
        return [torch.randn(1, 2, 5, size, generator=generator).to(device, torch.float16) for size in sizes]

    q, k, v = tensors(16, 32)
    out, _ = attention_forward(torch.nn.Module(), q, k, v, None, is_causal=False)
    expected = (q.float() @ k.float().mT * 16**-0.5).softmax(-1) @ v.float()
    assert torch.allclose(out.transpose(1, 2).float(), expected, atol=5e-3)
    with pytest.raises(NotImplementedError, match="head_dim 512"):
        attention_forward(torch.nn.Module(), *tensors(512, 512), None, is_causal=False)


def test_relative_positions_of_sound_are_eagers():
    names = "wav2vec2_conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel"
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
    sizes.update(conv_dim=(16,), conv_stride=(64,), conv_kernel=(64,), num_feat_extract_layers=1, num_conv_pos_embedding_groups=4)
    sizes.update(position_embeddings_type="relative", num_conv_pos_embeddings=8, feat_extract_norm="layer")
    sound, counts = torch.randn(2, 1280, generator=torch.Generator().manual_seed(3)), torch.ones(2, 1280, dtype=torch.long)
    counts[1, 640:] = 0
    results = []
    for implementation in ("eager", "signflash"):
        made = make(*names, implementation, **sizes)
        results.append(outputs_and_gradients(made, counts[:, ::64], input_values=sound, attention_mask=counts))
    check_equal(results)


def test_no_argument_that_models_hand_to_an_attention_function_is_unknown():
    """All are computed, refused, or known to change nothing. A short run would not show it: a model may choose keys."""
    import ast
    import inspect

    from signflash._transformers.attention import REFUSED, attention_forward

    known = {*inspect.signature(attention_forward).parameters, *REFUSED, "position_ids", "deterministic"}
    unknown = set()
    for file in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith(
                ("attention_interface", "attn_interface")
            ):
                unknown |= {(x.arg, file.name) for x in call.keywords if x.arg and x.arg not in known}
    assert not unknown


def test_the_script_sees_a_gradient_of_nan(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "coverage_models"))
    from examine import apart

    outputs, right = {"out": torch.ones(2)}, {"weight": torch.ones(3)}
    wrong = {"weight": torch.tensor([1.0, float("nan"), 1.0])}
    assert apart((outputs, right), (outputs, right), {}) == 0.0
    assert apart((outputs, right), (outputs, wrong), {}) == float("inf")


def test_the_script_sees_an_output_that_only_one_side_has(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "coverage_models"))
    from examine import apart

    both, one = {"out": torch.ones(2), "more": torch.ones(2)}, {"out": torch.ones(2)}
    assert apart((both, {}), (both, {}), {}) == 0.0
    for other in (one, {"out": torch.ones(2), "more": torch.ones(1, 2)}):
        assert apart((both, {}), (other, {}), {}) == apart((other, {}), (both, {}), {}) == float("inf")


def test_every_configuration_can_be_examined_by_the_script(tmp_path):
    """A few kinds, by the script that docs/transformers.md is written with."""
    import json

    expected = {
        "bert:BertConfig": "works",
        "deberta:DebertaConfig": "works",  # attends in code of its own
        "convbert:ConvBertConfig": "refused",
        "resnet:ResNetConfig": "nothing",
        "modernbert:ModernBertConfig": "works",
        "gpt_oss:GptOssConfig": "works",
        "lasr:LasrEncoderConfig": "works",  # calculates with its mask
    }
    out = tmp_path / "results.jsonl"
    command = [sys.executable, str(Path(__file__).parent / "coverage_models"), "run", str(out), *expected]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["key"]: row["verdict"] for row in rows} == expected, rows
    by_enable = {row["key"]: row["pytorch"]["verdict"] for row in rows if "pytorch" in row}
    assert by_enable == {"convbert:ConvBertConfig": "unused"}, rows
    compared = [float(x) for row in rows for x in row.get("pytorch", row).get("dropout", {}).values()]
    assert len(compared) >= 10 and max(compared) < 1e-5
