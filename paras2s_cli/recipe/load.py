"""A recipe from a name or path: YAML, nested recipes, dotted overrides, the model; all errors at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.base import kind_of
from paras2s_cli.recipe.catalog import find_recipe
from paras2s_cli.recipe.draft import Draft
from paras2s_cli.recipe.fields import did_you_mean
from paras2s_cli.recipe.source import Key, Place, Problem, RecipeDumper

T = TypeVar("T", bound=BaseModel)


def load_recipe(name_or_path: str, overrides: Sequence[str], model: type[T]) -> T:
    """Load a recipe and check it against `model`.

    `name_or_path` is a name (`pocket` is `pocket/<kind of the model>`; `pocket/polytone`) or a path that ends
    in .yaml. `overrides` are `section.key=value`, the value in YAML; lists take an index (`systems.0=base`);
    of two for one key the last wins. Raises one UsageError that lists all that is wrong, a line each: place,
    key, what is wrong, the nearest valid key.
    """
    file = find_recipe(name_or_path, kind_of(model))
    draft = Draft.read(file, model)
    for override in overrides:
        draft.override(override)
    recipe: T | None = None
    if draft.usable:
        try:
            recipe = model.model_validate(draft.data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                key = _key_in(draft.data, detail["loc"], str(detail["type"]))
                if not draft.is_broken(key):
                    draft.problems.append(Problem(draft.place_of(key), key, _what(detail, model, key)))
    if recipe is None or draft.problems:
        raise UsageError(_report(file.label, draft.problems))
    return recipe


def dump_recipe(recipe: BaseModel) -> str:
    """The recipe as YAML with every default written out; loading it gives the same recipe."""
    data = recipe.model_dump(mode="json")
    return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=110)


def recipe_hash(recipe: BaseModel) -> str:
    """12 hex digits: the same exactly when all values are, whatever file or override they came from."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _key_in(data: Any, location: tuple[str | int, ...], error_type: str) -> Key:
    """pydantic's location as a key of the data: it also names the members of unions, which are no keys."""
    key: list[str | int] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, dict) and part in data):
            key.append(part)
            data = data[part]
        elif last and error_type == "missing":
            key.append(part)
    return tuple(key)


def _what(detail: Any, model: type[BaseModel], key: Key) -> str:
    """pydantic's error in our words."""
    given, kind = detail["input"], detail["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(model, key)}"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return message
    if kind in ("model_type", "model_attributes_type"):
        message = "Input should be a mapping of keys to values"
    message = message.replace("Input should be", "must be")
    shown = json.dumps(given, default=str, ensure_ascii=False)
    message += f", not {shown}" if len(shown) <= 60 else f", not {shown[:57]}..."
    expected = str(detail.get("ctx", {}).get("expected", ""))
    near = (
        get_close_matches(given, expected.replace(" or ", ", ").replace("'", "").split(", "), n=1)
        if (isinstance(given, str) and expected)
        else []
    )
    return f"{message} (did you mean {near[0]}?)" if near else message


def _report(label: str, problems: list[Problem]) -> str:
    """All problems, in the order of the files, their lines, then the overrides."""
    order: dict[str, int] = {}
    for problem in problems:
        if problem.place.line is not None:
            order.setdefault(problem.place.name, len(order))

    def rank(place: Place) -> tuple[int, int]:
        return order.get(place.name, len(order)), place.line or 0

    lines = list(dict.fromkeys(str(p) for p in sorted(problems, key=lambda p: rank(p.place))))
    count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
    return "\n".join([f"{label} has {count}:", *(f"  {line}" for line in lines)])
