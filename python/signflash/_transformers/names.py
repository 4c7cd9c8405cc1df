"""What users write, and what a configuration then holds."""

from __future__ import annotations

from typing import Any

#: What users write.
ALIAS = "signflash"
#: What a model's configuration holds once the model is made. Transformers, models and other packages take every name
#: with "flash" in it for a flavour of the package flash_attn: they import it, hand over its arguments, or put a
#: kernel of their own in its place.
NAME = "signdense"
NAMES = (NAME, ALIAS)


def canonical(implementation: Any) -> Any:
    """NAME for ALIAS, also behind "paged|" and inside the dictionary that names the parts of a composite model; all
    else as it is."""
    if isinstance(implementation, dict):
        return {part: canonical(name) for part, name in implementation.items()}
    if isinstance(implementation, str) and implementation.split("|")[-1] == ALIAS:
        return implementation.removesuffix(ALIAS) + NAME
    return implementation


def rename(config: Any) -> None:
    """Writes NAME where a configuration, or one inside it, holds ALIAS."""
    seen, todo = set(), [config]
    while todo:
        config = todo.pop()
        if config is None or id(config) in seen:
            continue
        seen.add(id(config))
        if getattr(config, "_attn_implementation", None) == ALIAS:
            config._attn_implementation_internal = NAME
        todo += [x for x in vars(config).values() if hasattr(x, "_attn_implementation")]


def is_ours(config: Any) -> bool:
    """Whether this configuration asks for us."""
    return getattr(config, "_attn_implementation", None) in NAMES
