"""A recipe being put together: its data, where each key came from, and what is wrong so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.base import kind_of
from paras2s_cli.recipe.catalog import RecipeFile, command_of, find_recipe
from paras2s_cli.recipe.fields import at, default_at, did_you_mean, models_in, recipes_in, under
from paras2s_cli.recipe.source import Key, Place, Problem, parse_source, read_source


class Draft:
    """Plain data for `model`: nested recipes loaded in place, overrides applied one after the other."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self.data: dict[str, Any] = {}
        self.places: dict[Key, Place] = {}
        self.problems: list[Problem] = []
        self.broken: set[Key] = set()  # keys whose value could not be loaded: no further word about what is in them

    @classmethod
    def read(cls, file: RecipeFile, model: type[BaseModel]) -> Draft:
        """Read a recipe file and the recipes it names. Raises UsageError when the file cannot be read."""
        draft = cls(model)
        data = draft._read_file(file, [model], ())
        draft.data = data if data is not None else {}
        draft._expand(draft.data, model, (), file.path.parent, (file.path.resolve(),))
        return draft

    @property
    def usable(self) -> bool:
        """Whether there is anything to check against the model."""
        return () not in self.broken

    def is_broken(self, key: Key) -> bool:
        """Whether the key, or a section around it, could not be loaded."""
        return any(key[:length] in self.broken for length in range(len(key) + 1))

    def place_of(self, key: Key) -> Place:
        """Where the key, or the section around it, was written."""
        return next(self.places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.places)

    def override(self, text: str) -> None:
        """Apply one `section.key=value`; what is wrong with it goes to `problems`."""
        place = Place(f"override '{text}'")
        name, equals, value_text = text.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            self.problems.append(Problem(place, (), "write it as section.key=value"))
            return
        value = parse_source(value_text, place.name)
        if value.problems:
            self.problems.append(Problem(place, (), f"the value is not YAML: {value.problems[0].what}"))
            return
        key = self._set(parts, value.data, place)
        if key is not None:
            self._forget(key)
            self.places[key] = place
            self.places.update({(*key, *inner): place for inner in value.places if inner})
            self._expand_value(key, at(self.model, key), Path(), ())

    def _set(self, parts: list[str], value: Any, place: Place) -> Key | None:
        """Put a value under a dotted key, making sections on the way; the key, or None after a problem."""
        holder: Any = self.data
        key: Key = ()
        for position, part in enumerate(parts):
            if self.is_broken(key):
                return None  # that the section could not be loaded has been said
            step: str | int = part
            if isinstance(holder, list):
                if not part.isdecimal() or int(part) >= len(holder):
                    what = f"the list has {len(holder)} items; use an index from 0 to {len(holder) - 1}"
                    self.problems.append(Problem(place, (*key, part), what))
                    return None
                step = int(part)
            elif not isinstance(holder, dict):
                self.problems.append(Problem(place, key, "is a single value, with no keys below it"))
                return None
            here = (*key, step)
            if under(at(self.model, key), step) is None:
                self.problems.append(Problem(place, here, f"unknown key{did_you_mean(self.model, here)}"))
                return None
            if position == len(parts) - 1:
                holder[step] = value
            elif isinstance(holder, dict) and holder.get(part) is None:
                default = default_at(self.model, here)
                if default is None and under(at(self.model, here), parts[position + 1]) is not None:
                    default = {}
                elif default is None and models_in(at(self.model, here)):
                    default = {}  # an unknown key of a section: the next turn says so
                holder[part] = default
            key = here
            holder = holder[step]
        return key

    def _forget(self, key: Key) -> None:
        self.places = {other: at_ for other, at_ in self.places.items() if other[: len(key)] != key}
        self.broken = {other for other in self.broken if other[: len(key)] != key}

    def _expand(self, value: Any, annotation: Any, key: Key, folder: Path, chain: tuple[Path, ...]) -> None:
        """Load, in place, every nested recipe that is written as a name somewhere inside `value`."""
        if isinstance(value, dict | list):
            for part in list(value) if isinstance(value, dict) else range(len(value)):
                self._expand_value((*key, part), under(annotation, part), folder, chain)

    def _expand_value(self, key: Key, annotation: Any, folder: Path, chain: tuple[Path, ...]) -> None:
        holder: Any = self.data
        for part in key[:-1]:
            holder = holder[part]
        value = holder[key[-1]]
        candidates = recipes_in(annotation) if annotation is not None else []
        if not (isinstance(value, str) and candidates):
            if annotation is not None:
                self._expand(value, annotation, key, folder, chain)
            return
        place = self.place_of(key)
        try:
            file = find_recipe(value, kind_of(candidates[0]), folder)
            real = file.path.resolve()
            if real in chain:
                loop = " -> ".join(path.stem for path in (*chain[chain.index(real) :], real))
                raise UsageError(f"recipes that name each other in a circle: {loop}")
            holder[key[-1]] = self._read_file(file, candidates, key)
        except UsageError as error:
            self.problems.append(Problem(place, key, str(error)))
            self.broken.add(key)
            return
        self._expand(holder[key[-1]], annotation, key, file.path.parent, (*chain, real))

    def _read_file(self, file: RecipeFile, models: Sequence[type[BaseModel]], key: Key) -> dict[str, Any] | None:
        """One file's data, its places and problems moved under `key`; None (and broken) if of no use."""
        source = read_source(file.path, file.label)
        self.places.update({(*key, *inner): place for inner, place in source.places.items()})
        self.places.setdefault(key, Place(file.label, 1))
        self.problems.extend(Problem(p.place, (*key, *p.key), p.what) for p in source.problems)
        if not isinstance(source.data, dict):
            self.broken.add(key)
            return None
        wrong = _wrong_kind(source.data, [kind for kind in map(kind_of, models) if kind is not None])
        if wrong:
            self.problems.append(Problem(self.place_of((*key, "kind")), (*key, "kind"), wrong))
            self.broken.add(key)
            return None
        return dict(source.data)


def _wrong_kind(data: dict[str, Any], wanted: list[str]) -> str | None:
    """What to say about a recipe's `kind`; None when it is right, or the model asks for none."""
    if not wanted or data.get("kind") in wanted:
        return None
    expected = " or ".join(f"'{kind}'" for kind in wanted)
    if "kind" not in data:
        return f"is missing: write `kind: {wanted[0]}`"
    kind = data["kind"]
    if not isinstance(kind, str):
        return f"must be {expected}, not {kind!r}"
    return f"this recipe is of kind '{kind}', where {expected} is needed: `paras2s {command_of(kind)}` takes it"
