"""What a recipe model allows at a dotted key: the models there, the element types, the nearest valid key."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from paras2s_cli.recipe.base import RecipeBase
from paras2s_cli.recipe.source import Key, dotted


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, flattened; Annotated and None are taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [] if annotation is type(None) else [annotation]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models among the alternatives of an annotation."""
    return [kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def recipes_in(annotation: Any) -> list[type[RecipeBase]]:
    """The models that may be written as the name of a recipe: none where a plain string is a value too."""
    if str in alternatives(annotation):
        return []
    return [model for model in models_in(annotation) if issubclass(model, RecipeBase)]


def under(annotation: Any, part: str | int) -> Any:
    """The annotation of what is under `part` (a key or an index); None when nothing can be there."""
    found: list[Any] = []
    for kind in alternatives(annotation):
        origin, args = get_origin(kind) or kind, get_args(kind)
        if kind is Any:
            found.append(Any)
        elif not isinstance(origin, type):
            continue
        elif issubclass(origin, BaseModel):
            if part in origin.model_fields:
                found.append(origin.model_fields[str(part)].annotation)
        elif issubclass(origin, Mapping):
            found.append(args[1] if args else Any)
        elif issubclass(origin, tuple) and isinstance(part, int):
            elements = [arg for arg in args if arg is not Ellipsis]
            if not args or part < len(elements) or Ellipsis in args:
                found.append(elements[min(part, len(elements) - 1)] if elements else Any)
        elif issubclass(origin, Sequence) and not issubclass(origin, str | bytes) and isinstance(part, int):
            found.append(args[0] if args else Any)
    if not found:
        return None
    return found[0] if len(found) == 1 else Union[tuple(found)]  # noqa: UP007  (made at run time)


def at(model: type[BaseModel], key: Key) -> Any:
    """The annotation at a key of a model, or None."""
    annotation: Any = model
    for part in key:
        annotation = under(annotation, part)
    return annotation


def default_at(model: type[BaseModel], key: Key) -> Any:
    """The default value of the field at `key`, as plain data; None when it has none."""
    owners = models_in(at(model, key[:-1]))
    field = next((owner.model_fields[str(key[-1])] for owner in owners if key[-1] in owner.model_fields), None)
    if field is None or field.is_required():
        return None
    holder = next(owner for owner in owners if key[-1] in owner.model_fields)
    value = field.get_default(call_default_factory=True, validated_data={})
    # Dumped through its model, so that sections inside lists and mappings become plain data too.
    return holder.model_construct(**{str(key[-1]): value}).model_dump(mode="json", include={str(key[-1])})[str(key[-1])]


def all_keys(annotation: Any, prefix: Key = (), depth: int = 8) -> list[Key]:
    """Every key that a model has, sections and what is in them."""
    keys: list[Key] = []
    for model in models_in(annotation):
        for name, field in model.model_fields.items():
            keys.append((*prefix, name))
            if depth:
                keys.extend(all_keys(field.annotation, (*prefix, name), depth - 1))
    return keys


def did_you_mean(model: type[BaseModel], key: Key) -> str:
    """' (did you mean x?)' for an unknown key: a neighbour's name, else that name in another section."""
    section = models_in(at(model, key[:-1]))
    siblings = list(dict.fromkeys(name for owner in section for name in owner.model_fields))
    near = get_close_matches(str(key[-1]), siblings, n=1)
    if near:
        return f" (did you mean {dotted((*key[:-1], near[0]))}?)"
    elsewhere = all_keys(model)
    close = get_close_matches(str(key[-1]), list(dict.fromkeys(str(other[-1]) for other in elsewhere)), 1, 0.8)
    if close:
        nearest = min((other for other in elsewhere if other[-1] == close[0]), key=len)
        return f" (did you mean {dotted(nearest)}?)"
    return f" (keys here: {', '.join(siblings)})" if siblings else ""
