"""Models that Transformers would not compute by us, or not rightly: refused when they are made, or by a sentence."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_transformers_models import BART, DECODER, ENCODER, VISION, ids, kinds, make, short, state

DEBERTA = ("DebertaConfig", "DebertaModel", ENCODER)
#: (package, configuration, model, settings, what the sentence names)
OWN = [
    ("deberta", *DEBERTA, "DisentangledSelfAttention"),
    ("xlnet", "XLNetConfig", "XLNetModel", dict(d_model=64, n_layer=2, n_head=4, d_inner=96), "XLNetRelativeAttention"),
    ("bloom", "BloomConfig", "BloomModel", dict(hidden_size=64, n_layer=2, n_head=4, vocab_size=60), "BloomAttention"),
    ("mpnet", "MPNetConfig", "MPNetModel", ENCODER, "MPNetSelfAttention"),
    # Its product and its softmax are in classes of their own.
    ("squeezebert", "SqueezeBertConfig", "SqueezeBertModel", dict(ENCODER, embedding_size=64), "registry"),
    # Ask by getattr(), which finds nothing.
    (
        "kosmos2_5",
        "Kosmos2_5VisionConfig",
        "Kosmos2_5VisionModel",
        dict(num_hidden_layers=1),
        "Kosmos2_5VisionAttention",
    ),
    # Tables of classes: a KeyError, or flash_attn's class because of the name.
    ("falcon", "FalconConfig", "FalconModel", dict(hidden_size=64, num_attention_heads=4), "FALCON_ATTENTION_CLASSES"),
    ("git", "GitConfig", "GitModel", ENCODER, "GIT_SELF_ATTENTION_CLASSES"),
    ("sam", "SamVisionConfig", "SamVisionModel", VISION, "SAM_VISION_ATTENTION_CLASSES"),
    # The decoder asks, the encoder does not.
    ("led", "LEDConfig", "LEDModel", dict(BART, attention_window=8), "LEDEncoderSelfAttention"),
    ("flava", "FlavaTextConfig", "FlavaTextModel", ENCODER, "FlavaSelfAttention"),
]


@pytest.mark.parametrize("package,config,model,settings,names", OWN, ids=[x[0] for x in OWN])
def test_models_with_attention_of_their_own_are_refused_when_they_are_made(package, config, model, settings, names):
    with pytest.raises(NotImplementedError, match=f"does not support attn_implementation='signflash': .*{names}"):
        make(package, config, model, **settings)
    make(package, config, model, "eager", **settings)


def test_a_composite_model_is_refused_for_its_part_and_made_without_it():
    config, model = kinds("bridgetower", "BridgeTowerConfig", "BridgeTowerModel")
    text, vision = dict(ENCODER), dict(hidden_size=64, num_hidden_layers=2, image_size=32, patch_size=16)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, text_config=text, vision_config=vision)
    whole = config(**sizes)
    whole._attn_implementation = "signflash"
    with pytest.raises(NotImplementedError, match="BridgeTowerVision.*does not support"):
        model(whole)
    part = config(**sizes)
    part._attn_implementation = {"": "signflash", "text_config": "signflash", "vision_config": "eager"}
    made = model(part)
    assert made.config.vision_config._attn_implementation == "eager"
    assert made.config.text_config._attn_implementation == "signdense"


def test_another_implementation_later_is_judged_too():
    deberta = make("deberta", *DEBERTA[:2], "eager", **ENCODER)
    with pytest.raises(NotImplementedError, match="DebertaModel does not support"):
        deberta.set_attn_implementation("signflash")
    assert deberta.config._attn_implementation == "eager"
    llama = make("llama", "LlamaConfig", "LlamaModel", "eager", **DECODER)
    expected = state(llama(ids(), attention_mask=short()))
    llama.set_attn_implementation("signflash")
    assert llama.config._attn_implementation == "signdense"
    got = state(llama(ids(), attention_mask=short()))
    assert torch.allclose(got * short()[..., None], expected * short()[..., None], atol=2e-5)


def test_a_model_that_reads_the_mask_itself_is_refused_by_a_sentence():
    model = make("doge", "DogeConfig", "DogeModel", **DECODER)
    with pytest.raises(NotImplementedError, match="asks for .* of the attention mask.*use attn_implementation='eager'"):
        model(ids(), attention_mask=short())
