"""Modules that attend in code of their own which :mod:`.recognised` can read: which they are, and how it is at work in them."""

from __future__ import annotations

import functools
import threading
from typing import Any, List

import torch

from .mask import uncompiled
from .names import is_ours
from .recognised import Recognising
from .routes import Route

#: Classes of Transformers whose attention is read rightly: tests/python/coverage_models has looked at each, with its gradients,
#: dropout masks and padding. All others are refused when a model is made.
RECOGNISED = frozenset(
    """
    bark.BarkSelfAttention blip.BlipAttention blip.BlipTextSelfAttention bloom.BloomAttention bros.BrosSelfAttention
    canine.CanineSelfAttention clap.ClapAudioSelfAttention clvp.ClvpSelfAttention data2vec.Data2VecVisionSelfAttention
    deberta.DisentangledSelfAttention deberta_v2.DisentangledSelfAttention deepseek_ocr2.DeepseekOcr2SamVisionAttention
    donut.DonutSwinSelfAttention evolla.EvollaSequenceAlignerCrossAttention flaubert.MultiHeadAttention
    flava.FlavaSelfAttention fsmt.Attention funnel.FunnelRelMultiheadAttention git.GitSelfAttention
    glpn.GLPNEfficientSelfAttention got_ocr2.GotOcr2VisionAttention gpt_neo.GPTNeoSelfAttention
    gpt_neox_japanese.GPTNeoXJapaneseAttention groupvit.GroupViTAttention ibert.IBertSelfAttention
    imagegpt.ImageGPTAttention kosmos2_5.Kosmos2_5VisionAttention lilt.LiltSelfAttention luke.LukeSelfAttention
    lxmert.LxmertAttention maskformer.MaskFormerSwinSelfAttention megatron_bert.MegatronBertSelfAttention
    mgp_str.MgpstrAttention mobilevit.MobileViTSelfAttention mpnet.MPNetSelfAttention mvp.MvpAttention
    pp_formulanet.PPFormulaNetVisionAttention pvt.PvtEfficientSelfAttention pvt_v2.PvtV2SelfAttention
    rembert.RemBertSelfAttention roformer.RoFormerSelfAttention sam.SamVisionAttention sam_hq.SamHQVisionAttention
    slanext.SLANeXtVisionAttention speecht5.SpeechT5Attention squeezebert.SqueezeBertSelfAttention
    swin2sr.Swin2SRSelfAttention swinv2.Swinv2SelfAttention tapas.TapasSelfAttention
    timesformer.TimesformerSelfAttention trocr.TrOCRAttention unlimited_ocr.UnlimitedOcrSamVisionAttention
    vilt.ViltSelfAttention visual_bert.VisualBertSelfAttention xglm.XGLMAttention xlm.MultiHeadAttention xlnet.XLNetRelativeAttention
    """.split()
)
#: What the script asks for that looks for them.
trying = threading.local()


def is_recognised(kind: type, route: Route) -> bool:
    package = kind.__module__.split(".")
    if package[:2] != ["transformers", "models"]:
        return False
    return f"{package[2]}.{kind.__name__}" in RECOGNISED or (
        getattr(trying, "all", False) and route.computes and route.drops
    )


def is_read(module: torch.nn.Module) -> bool:
    return hasattr(module, "_signflash_reads")


def read(modules: List[torch.nn.Module], config: Any) -> None:
    """From now on attention in these modules is read while the configuration asks for us."""
    for module in modules:
        module._signflash_reads = config
        kind = type(module)
        if not hasattr(kind.forward, "_of_signflash"):
            kind.forward = _reading(kind.forward)


def _reading(original: Any) -> Any:
    """A class's forward, which reads in those of its modules that ask for it, and is what it was in all others."""

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        config = getattr(self, "_signflash_reads", None)
        if config is None or not is_ours(config):
            return original(self, *args, **kwargs)
        return _read(self, original, args, kwargs)

    forward._of_signflash = True
    return forward


@uncompiled
def _read(module: torch.nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
    # A compiler would see what the model wrote, and not what becomes of it.
    with Recognising(module):
        return original(module, *args, **kwargs)
