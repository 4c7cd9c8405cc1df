"""One configuration: does it train with signflash, and as eager attention says?

Verdicts:
    works     every dropout of attention is ours; without dropout, and with it and the same dropout mask, outputs and
              gradients are eager's
    refused   our sentence, when the model is made or when it runs
    partly    some dropouts of attention are ours, some are not, and nothing was said
    unused    none is ours, and nothing was said
    wrong     ran, and differs from eager
    crash     an error that is not our sentence
    nothing   no dropout of attention to be seen in eager attention either
    not run   could not be made or run with eager attention

What is refused is examined again as users would have it then: with PyTorch's attention in the model and signflash.enable().
"""

import contextlib
import os
import time
import traceback

import signflash
import torch
from configurations import dropouts, model_classes, set_dropouts
from inputs import Inputs
from shrinking import WAYS, arguments
from signflash._transformers import own
from transformers import PreTrainedModel
from watch import Watch

WORST = ("not run", "nothing", "works", "refused", "unused", "partly", "crash", "wrong")
TOLERANCE = 1e-3
MOST_PARAMETERS = 60e6
WATCH = Watch()


class Model:
    """A small model of a configuration that runs with eager attention, and how to make it again."""

    def __init__(self, key, kind):
        self.kind, self.tried = kind, []
        for way in WAYS:
            for made in model_classes(key, kind)[:3]:
                if self.runs(way, made):
                    return
        raise LookupError("; ".join(self.tried[:6]) or "no model class")

    def runs(self, way, made):
        self.way, self.made = way, made
        try:
            with torch.device("meta"):
                parameters = sum(p.numel() for p in made(self.configuration("eager")).parameters())
            if parameters > MOST_PARAMETERS:
                raise MemoryError(f"{parameters / 1e6:.0f} M parameters")
            model = self.make("eager")
            candidates = Inputs(model, self.configuration("eager")).candidates()
        except Exception as error:
            self.tried.append(f"{way}, {made.__name__}: {short(error)}")
            return False
        for self.plain, self.padded, self.packed in candidates:
            try:
                with torch.no_grad():
                    if floats(model(**self.plain)):
                        return True
            except Exception as error:
                self.tried.append(f"{way}, {made.__name__}, {sorted(self.plain)}: {short(error)}")
        return False

    def configuration(self, implementation, p=None):
        config = self.kind(**arguments(self.kind, self.way))
        if p is not None:
            set_dropouts(config, p)
        config._attn_implementation = implementation
        return config

    def make(self, implementation, p=None):
        torch.manual_seed(0)
        return self.made(self.configuration(implementation, p)).float().eval()

    def inputs(self):
        found = (("plain", self.plain), ("padded", self.padded), ("packed", self.packed))
        return {k: v for k, v in found if v is not None}


def examine(key, kind):
    """{"key", "verdict", "why", ...}"""
    began = time.time()
    result = dict(key=key, model_type=getattr(kind, "model_type", ""))
    try:
        result["arguments"] = dropouts(kind())
        model = Model(key, kind)
    except Exception as error:
        return dict(result, verdict="not run", why=short(error), seconds=time.time() - began)
    result.update(model=model.made.__name__, way=model.way)
    try:
        default, eager = drops(model, None), drops(model, 0.1)
    except Exception as error:
        return dict(result, verdict="not run", why=f"eager training: {short(error)}", seconds=time.time() - began)
    result.update(default=max(default, default=0.0), eager=len(eager))
    result.update(judge(model, len(eager), "signflash"))
    if result["verdict"] == "refused":
        result["pytorch"] = with_pytorchs(model, len(eager))
    return dict(result, seconds=round(time.time() - began, 1))


def drops(model, p):
    """The probabilities of the dropouts of attention in one training step with eager attention."""
    run(model.make("eager", p), model.plain, True, backward=False)
    return list(WATCH.others)


def judge(model, eager, implementation):
    """All inputs, the worst verdict."""
    try:
        given = ((implementation, 0.1), (implementation, 0.0), ("eager", 0.1), ("eager", 0.0))
        dropping, plain, reference_dropping, reference = (model.make(*x) for x in given)
    except Exception as error:
        return of_error(error)
    for x in (dropping, plain, reference_dropping):
        x.load_state_dict(reference.state_dict())
    verdicts = {}
    for label, inputs in model.inputs().items():
        try:
            expected = run(reference, inputs, False)
        except Exception:
            continue  # eager attention does not take these inputs
        try:
            with WATCH.recording() as kept:
                dropped = run(dropping, inputs, True)
            verdict = of_counts(WATCH, eager)
            difference = apart(expected, run(plain, inputs, False), inputs)
            if difference > TOLERANCE and label == "padded":
                # A model may read an output of a padded position: nobody's business but the harness's.
                rows = beside_padding(reference, expected, inputs)
                expected = run(reference, inputs, False, rows=rows)
                difference = apart(expected, run(plain, inputs, False, rows=rows), inputs)
            if difference > TOLERANCE and not stands_alone(
                model, implementation, reference, expected, inputs, difference
            ):
                verdict = dict(verdict="wrong", why=f"differs by {difference:.1e}")
            elif verdict["verdict"] == "works":
                verdict.update(of_dropout(reference_dropping, inputs, dropped, kept))
        except Exception as error:
            verdict = of_error(error)
        verdicts[label] = verdict
    if not verdicts:
        return dict(verdict="not run", why="eager attention is not differentiable")
    label, worst = max(verdicts.items(), key=lambda x: WORST.index(x[1]["verdict"]))
    also = {label: v["verdict"] for label, v in verdicts.items()}
    dropout = {label: v["dropout"] for label, v in verdicts.items() if "dropout" in v}
    only = label if worst["verdict"] != also.get("plain") else ""
    return dict(worst, inputs=also, only=only, dropout=dropout, read=read_in(dropping))


def is_unsteady(reference, inputs, kept, expected, difference):
    """Whether something else is random, or a change of the weights by a millionth moves eager attention's results as far."""
    before = {name: x.detach().clone() for name, x in reference.named_parameters()}
    moved = []
    for change, seed in ((0.0, 4), (1e-6, 3)):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, x in reference.named_parameters():
                x.copy_(before[name] * (1.0 + change * torch.randn(x.shape, generator=generator)))
        with WATCH.replaying(kept):
            moved.append(apart(expected, run(reference, inputs, True, seed=seed), inputs))
    with torch.no_grad():
        for name, x in reference.named_parameters():
            x.copy_(before[name])
    return max(moved) > max(TOLERANCE, 0.1 * difference)


def read_in(model):
    """The classes of its modules whose own attention is read while it runs."""
    kinds = {type(x) for x in model.modules() if own.is_read(x)}
    return sorted(f"{kind.__module__.split('.')[2]}.{kind.__name__}" for kind in kinds)


def with_pytorchs(model, eager):
    """The verdict of PyTorch's attention while ours is enabled; some models that do not know "sdpa" call it all the same."""
    for implementation in ("sdpa", "eager"):
        with signflash.enabled():
            found = judge(model, eager, implementation)
        if "does not support an attention implementation through" not in found["why"]:
            break
    return dict(found, implementation=implementation)


def of_dropout(reference, inputs, dropped, kept):
    """Eager attention that drops what ours has dropped."""
    try:
        with WATCH.replaying(kept):
            expected = run(reference, inputs, True)
    except Exception as error:
        return dict(dropout=f"not compared: {short(error)}")
    difference = apart(expected, dropped, inputs)
    if difference > TOLERANCE and is_unsteady(reference, inputs, kept, expected, difference):
        return dict(dropout="not compared: eager attention differs as much from itself")
    found = dict(dropout=f"{difference:.1e}")
    return (
        found
        if difference <= TOLERANCE
        else dict(found, verdict="wrong", why=f"with dropout differs by {difference:.1e}")
    )


def of_counts(watch, eager):
    ours, others = watch.dropped, len(watch.others)
    if ours and others:
        return dict(verdict="partly", why=f"{ours} of {ours + others} dropouts are ours")
    if ours:
        return dict(verdict="works", why="")
    if others or eager:
        return dict(verdict="unused", why=f"{max(others, eager)} dropouts, none is ours")
    return dict(verdict="nothing", why="ours is called" if watch.calls else "")


def of_error(error):
    """Ours says what it cannot do; all else is a crash."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = isinstance(error, NotImplementedError) and f"{os.sep}signflash{os.sep}" in last
    return dict(verdict="refused" if ours else "crash", why=short(error, 500))


def beside_padding(reference, expected, inputs):
    """{output: 1 for each row of the batch that stays the same when only tokens of padding change, else 0}"""
    changed = dict(inputs)
    for name, of in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        if name in inputs and of in inputs:
            ids = inputs[name]
            changed[name] = torch.where(inputs[of] == 0, ids.flatten()[ids.argmin()].expand_as(ids), ids)
    again = run(reference, changed, False)[0]
    moved = {k: (x - again[k]).abs().flatten(1).amax(1) for k, x in expected[0].items() if x.dim() > 1}
    return {k: (x <= TOLERANCE * 1e-2).float() for k, x in moved.items()}


def stands_alone(model, implementation, reference, expected, inputs, difference):
    """Whether eager attention differs as much from itself or from PyTorch's own: then the difference is not ours."""
    if apart(expected, run(reference, inputs, False), inputs) > TOLERANCE:
        return True
    if implementation != "signflash":
        return False
    try:
        sdpa = model.make("sdpa", 0.0)
        sdpa.load_state_dict(reference.state_dict())
        return abs(apart(expected, run(sdpa, inputs, False), inputs) - difference) < 0.01 * difference
    except Exception:
        return False


def run(model, inputs, train, backward=True, rows=None, seed=3):
    """(outputs, gradients of all parameters), of some rows of the outputs only if they are given."""
    model.train(train)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    WATCH.reset()
    with returned_by_parts(model) as parts:
        returned = model(**inputs)
    out, counts = floats(returned), padding_of((*parts, returned), inputs)
    for k, keep in (rows or {}).items():
        out[k] = out[k] * keep.reshape(-1, *(1,) * (out[k].dim() - 1))
    loss = loss_of(out, counts)
    if backward and isinstance(loss, torch.Tensor):
        loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {k: counted(x.detach().float(), counts) for k, x in out.items()}, gradients


def floats(out, path="", depth=0):
    """{path: tensor} of what a model returned."""
    if isinstance(out, torch.Tensor):
        return {path: out} if out.is_floating_point() else {}
    found = {}
    if depth < 4 and hasattr(out, "items"):
        for k, v in out.items():
            if k not in ("attentions", "hidden_states", "past_key_values"):
                found.update(floats(v, f"{path}.{k}", depth + 1))
    elif depth < 4 and isinstance(out, (list, tuple)):
        for i, v in enumerate(out):
            found.update(floats(v, f"{path}[{i}]", depth + 1))
    return found


@contextlib.contextmanager
def returned_by_parts(model):
    """A list that gets what each of the models inside a model returns."""
    returned = []
    parts = [x for x in model.modules() if isinstance(x, PreTrainedModel) and x is not model]
    hooks = [x.register_forward_hook(lambda _, __, out: returned.append(out)) for x in parts]
    try:
        yield returned
    finally:
        for hook in hooks:
            hook.remove()


def padding_of(returned, inputs):
    """The masks (batch, seqlen) that say which positions count. A model, or a part of one, that shortens its sequence, as
    the encoders of Moonshine and Canary do, returns one for what is left."""
    found = [inputs.get("attention_mask"), inputs.get("decoder_attention_mask")]
    found += [getattr(x, "attention_mask", None) for x in returned]
    return [x for x in found if isinstance(x, torch.Tensor) and x.dim() == 2]


def counted(x, counts):
    """Zero where a position is padding."""
    for mask in counts:
        if x.dim() >= 2 and x.shape[:2] == mask.shape:
            return x * mask.to(x.dtype).reshape(*mask.shape, *(1,) * (x.dim() - 2))
    return x


def loss_of(out, counts):
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for x in out.values():
        if x.requires_grad:
            x = counted(x.float(), counts)
            x = torch.where(torch.isfinite(x), x, 0.0).clamp(-1e4, 1e4)
            total = total + (x * torch.randn(x.shape, generator=generator)).mean()
    return total


def apart(a, b, inputs):
    """The larger of the outputs' difference and a tenth of the gradients', each relative to the largest value.

    Outputs that only one side has, or that have another shape, are infinitely far apart.
    """
    worst = 0.0
    if {k: x.shape for k, x in a[0].items()} != {k: x.shape for k, x in b[0].items()}:
        return float("inf")
    for x, y in ((a[0][k], b[0][k]) for k in a[0]):
        finite = torch.isfinite(x) & torch.isfinite(y)
        if bool((torch.isfinite(x) != torch.isfinite(y)).any()):
            return float("inf")
        if bool(finite.any()):
            worst = max(worst, float((x - y)[finite].abs().max()) / max(1.0, float(x[finite].abs().max())))
    finite = [g[torch.isfinite(g)] for g in a[1].values()]
    largest = max([float(g.abs().max()) for g in finite if g.numel()] or [1.0]) or 1.0
    for k in set(a[1]) | set(b[1]):
        x, y = (gradients.get(k) for gradients in (a[1], b[1]))
        x, y = (torch.zeros_like(y) if x is None else x), (torch.zeros_like(x) if y is None else y)
        finite = torch.isfinite(x)
        if bool((finite != torch.isfinite(y)).any()):
            return float("inf")
        if bool(finite.any()):
            worst = max(worst, float((x - y)[finite].abs().max()) / largest / 10)
    return worst


def short(error, length=200):
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:length]
