"""The configuration classes of Transformers, and small models of them."""

import importlib
import inspect
import os
import pkgutil
import re
from dataclasses import fields, is_dataclass

from transformers import PreTrainedConfig, PreTrainedModel
from transformers import models as packages

DROPOUT = re.compile(r"drop", re.I)
ATTENTION_DROPOUT = re.compile(r"att.*drop|drop.*att|attn_pdrop|attn_drop", re.I)
#: Numbers with "drop" in their name that are the probability of something else.
NO_DROPOUT = re.compile(
    r"layerdrop|layer_drop|drop_path|path_dropout|droppath|drop_last|drop_vision|drop_conv|drop_connect|token_drop"
    r"|before_drop|positional_drop"
)


def all_classes(of=None):
    """{"package:Configuration": class} of everything in transformers.models, or of some packages in it."""
    found = {}
    for package in of or sorted(x.name for x in pkgutil.iter_modules(packages.__path__) if x.ispkg):
        for file in sorted(os.listdir(os.path.join(packages.__path__[0], package))):
            if not (file.startswith("configuration_") and file.endswith(".py")):
                continue
            name = f"transformers.models.{package}.{file[:-3]}"
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # needs a package that is not installed
            for kind in vars(module).values():
                if inspect.isclass(kind) and issubclass(kind, PreTrainedConfig) and kind.__module__ == name:
                    found[f"{package}:{kind.__name__}"] = kind
    return found


def model_classes(key, kind):
    """The models of a configuration class, the one that AutoModel takes first."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    package, found = key.split(":")[0], []
    for file in sorted(os.listdir(os.path.dirname(inspect.getfile(kind)))):
        if not (file.startswith("modeling_") and file.endswith(".py")):
            continue
        module = importlib.import_module(f"transformers.models.{package}.{file[:-3]}")
        for name, x in vars(module).items():
            if not (inspect.isclass(x) and issubclass(x, PreTrainedModel) and x.__module__ == module.__name__):
                continue
            of = getattr(x, "config_class", None)
            runs = any("forward" in vars(k) for k in x.__mro__ if k.__module__.startswith("transformers.models"))
            if runs and not name.endswith(("PreTrainedModel", "PretrainedModel")) and of in (kind, kind.__name__):
                found.append(x)
    try:
        auto = MODEL_MAPPING[kind]
    except Exception:
        auto = ()
    first = list(auto) if isinstance(auto, (tuple, list)) else [auto]
    return list(dict.fromkeys(first + [x for x in found if x.__name__.endswith("Model")] + found))


def dropouts(config, prefix="", depth=0):
    """{path: value} of the dropout probabilities of a configuration and those inside it."""
    found = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig) and depth < 4:
            found.update(dropouts(value, f"{prefix}{name}.", depth + 1))
        elif is_probability(name, value):
            found[prefix + name] = value
    return found


def is_probability(name, value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and bool(DROPOUT.search(name)) and not NO_DROPOUT.search(name)


def set_dropouts(config, p, depth=0):
    """Every dropout of a configuration is p, and nothing else is random in training."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig) and depth < 4:
            set_dropouts(value, p, depth + 1)
        elif is_probability(name, value):
            setattr(config, name, p)
        elif isinstance(value, list) and value and all(isinstance(x, float) for x in value) and is_probability(name, p):
            setattr(config, name, [p] * len(value))
        elif re.search(r"layerdrop|layer_drop|drop_path", name) and isinstance(value, (int, float)):
            setattr(config, name, type(value)(0))
        elif name in ("mask_time_prob", "mask_feature_prob"):
            setattr(config, name, 0.0)


def find(config, *names, default=None, depth=0):
    """The first value of these names in a configuration or one inside it."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
        if depth < 3:
            for inner in vars(config).values():
                if isinstance(inner, PreTrainedConfig):
                    value = find(inner, name, depth=depth + 1)
                    if value is not None:
                        return value
    return default


def special_ids(config, depth=0):
    """Numbers of tokens that mean something."""
    ids = set()
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig) and depth < 3:
            ids |= special_ids(value, depth + 1)
        elif name.endswith(("_token_id", "_token_index", "_index", "token_ids")):
            ids |= {x for x in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(x, int)}
    return ids


def constructor_names(kind):
    names = set(inspect.signature(kind.__init__).parameters)
    return names | ({x.name for x in fields(kind)} if is_dataclass(kind) else set())
