"""Where we reach into Transformers: our name in configurations, and the judgement of models when they are made.

A model that would not call us everywhere is refused by name, not left to differ in silence.
"""

from __future__ import annotations

import functools
from typing import Any, Iterator, List, Tuple

from transformers import PretrainedConfig, PreTrainedModel

from .names import ALIAS, NAME, canonical, is_ours, rename
from .own import is_read, is_recognised, read
from .routes import Route, route_of, route_of_module, table_of


def judge_models() -> None:
    """From now on models are judged when they are made, and when they are given another attention implementation."""
    for kind, name, wrapper in (
        (PretrainedConfig, "__setattr__", _written),
        (PreTrainedModel, "_check_and_adjust_attn_implementation", _checked),
        (PreTrainedModel, "post_init", _judged),
        (PreTrainedModel, "set_attn_implementation", _set),
    ):
        original = getattr(kind, name, None)
        if original is not None and not hasattr(original, "_of_signflash"):
            setattr(kind, name, _around(original, wrapper))


def _around(original: Any, wrapper: Any) -> Any:
    """A method that hands the original to the wrapper."""

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return wrapper(self, original, *args, **kwargs)

    method._of_signflash = True
    return method


def _written(config: Any, original: Any, name: str, value: Any) -> None:
    """Each attribute that a configuration gets. Some classes look for "flash" right here."""
    original(config, name, canonical(value) if name.startswith("_attn_implementation") else value)


def _checked(model: Any, original: Any, implementation: Any, *args: Any, **kwargs: Any) -> Any:
    """Where Transformers checks a name, before there are layers."""
    implementation = canonical(implementation)
    if implementation == NAME:
        rename(model.config)
        name, table = table_of(type(model))
        if name and NAME not in table and is_recognised(table["eager"], route_of(table["eager"])):
            table[NAME] = table["eager"]  # whose attention is read while it runs
        if name and NAME not in table:
            _refuse(model, f"it takes its attention layers from a table of its own, {name}, which has no {ALIAS}")
    return original(model, implementation, *args, **kwargs)


def _judged(model: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Behind the making of each model, and of each model inside it."""
    result = original(model, *args, **kwargs)
    if is_ours(model.config):
        judge(model)
    return result


def _set(model: Any, original: Any, implementation: Any, *args: Any, **kwargs: Any) -> Any:
    """set_attn_implementation: as for a new model, and if it is refused nothing has changed."""
    implementation = canonical(implementation)
    models = [x for x in model.modules() if isinstance(x, PreTrainedModel)]
    before = [(x.config, x.config._attn_implementation) for x in models]
    try:
        result = original(model, implementation, *args, **kwargs)
        for x in models:
            if is_ours(x.config):
                judge(x)
        if implementation == NAME and not is_ours(model.config):
            _refuse(model, "Transformers would leave it as it is")
    except Exception:
        for config, name in before:
            config._attn_implementation_internal = name
        raise
    return result


def judge(model: Any) -> None:
    """Raises if attention of this model, without the models inside it, does not come to us. In classes that are known it is
    read where it is written out.

    What attends once and never drops, as a pooling head does, is left to itself in a model that asks for us elsewhere.

    Raises:
        NotImplementedError: naming the classes that compute attention themselves, and what to use.
    """
    modules = list(_routes(model))
    read([x for x, route in modules if is_recognised(type(x), route)], model.config)
    routes = [(type(x).__name__, route) for x, route in modules if not is_read(x)]
    of_parts = [x for part in _parts(model) for x in _routes(part)]
    asks = any(route.asks or is_read(x) for x, route in (*modules, *of_parts))
    own = sorted({name for name, route in routes if route.computes and (route.drops or not asks)})
    if own and asks:
        _refuse(model, f"a part of its attention, {', '.join(own)}, is code of its own that would drop without {ALIAS}")
    elif own:
        _refuse(model, f"{', '.join(own)} computes attention in code of its own, which would never call {ALIAS}")
    elif not asks and not _can_be_set(model):
        _refuse(
            model, f"its layers do not take their attention from Transformers' registry and would never call {ALIAS}"
        )


def _parts(model: Any) -> List[Any]:
    """The models inside a model that ask for us; they were judged before it."""
    return [x for x in model.modules() if isinstance(x, PreTrainedModel) and x is not model and is_ours(x.config)]


def _routes(model: Any) -> Iterator[Tuple[Any, Route]]:
    """A model's modules, but for models inside it, judged by themselves, and parts with another implementation."""
    todo: List[Any] = [model]
    while todo:
        module = todo.pop()
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation") and not is_ours(config):
            continue
        yield module, route_of_module(module)
        todo += [child for child in module.children() if not isinstance(child, PreTrainedModel)]


def _can_be_set(model: Any) -> bool:
    """What Transformers itself thinks of its own models, having looked for attention layers in the source."""
    ask = getattr(type(model), "_can_set_attn_implementation", None)
    return ask is None or not type(model).__module__.startswith("transformers.models.") or ask()


def _refuse(model: Any, why: str) -> None:
    if getattr(model, "_supports_sdpa", False):
        others = "'sdpa' for it, whose dropout is ours after signflash.enable() wherever it calls PyTorch's attention, or 'eager'"
    elif any(route.calls_pytorchs for _, route in _routes(model)):
        others = "'eager' for it, which calls PyTorch's attention here: after signflash.enable() its dropout is ours"
    else:
        others = "'eager' for it"
    raise NotImplementedError(
        f"{type(model).__name__} does not support attn_implementation='{ALIAS}': {why}. Use {others}; where it is a "
        f"part of a larger model, attn_implementation takes a dictionary, as dict(text_config='{ALIAS}', vision_config='eager')"
    )
