"""A recipe file as plain data, with the file and line that every key came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paras2s_cli.errors import UsageError

Key = tuple[str | int, ...]
MAX_BYTES = 1_000_000

_TAG = "tag:yaml.org,2002:"
# YAML 1.2's plain values, because 1.1 (PyYAML's) reads 2e-4 as a string, `no` as False and 010 as eight.
_PLAIN = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    (
        "float",
        re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.nan)$"),
        list("-+.0123456789"),
    ),
)


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and a line (from 1), or an override (no line)."""

    name: str
    line: int | None = None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where, under which dotted key ('' for the file itself), and what."""

    place: Place
    key: Key
    what: str

    def __str__(self) -> str:
        parts = [str(self.place), dotted(self.key), self.what]
        return ": ".join(part for part in parts if part)


@dataclass
class Source:
    """What was read: plain data (None if it could not be), the place of every key, what was wrong."""

    name: str
    data: Any = None
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way: a table per class)


class RecipeDumper(yaml.SafeDumper):
    """Quotes every string that this module's reader, or another one, would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_TAG + _tag, _pattern, _first)
    RecipeDumper.add_implicit_resolver(_TAG + _tag, _pattern, _first)


def _integer(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    assert isinstance(node, yaml.ScalarNode)
    return int(loader.construct_scalar(node).replace("_", ""))


_Loader.add_constructor(_TAG + "int", _integer)


def dotted(key: Key) -> str:
    """('train', 'lr') -> 'train.lr'."""
    return ".".join(str(part) for part in key)


def read_source(path: Path, name: str) -> Source:
    """Read a recipe file that messages call `name`. Raises UsageError when there is no such text file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such recipe file") from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a folder; a recipe is one YAML file") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{name} has {len(raw)} bytes, too many for a recipe: is it another kind of file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: not UTF-8 text, so not a recipe") from None
    source = parse_source(text, name)
    if source.data is None and not source.problems:
        source.problems.append(Problem(Place(name, 1), (), "the file is empty"))
    elif source.data is not None and not isinstance(source.data, dict):
        source.problems.append(Problem(Place(name, 1), (), "a recipe is a mapping of keys to values"))
        source.data = None
    return source


def parse_source(text: str, name: str) -> Source:
    """Parse YAML text of any shape; what is wrong with it goes to `problems`, with its line."""
    source = Source(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            source.data = _plain(loader, node, (), source)
    except yaml.MarkedYAMLError as error:
        source.data = None
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        what = (error.problem or error.context or "not YAML").strip()
        if "'\\t'" in what:
            what = "a tab where only spaces may be: indent with spaces"
        source.problems.append(Problem(Place(name, line), (), what))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        source.problems.append(Problem(Place(name, line), (), f"a character that YAML does not allow ({error.reason})"))
    except RecursionError:
        source.data = None
        source.problems.append(Problem(Place(name, 1), (), "nested too deeply, or an alias within itself"))
    return source


def _plain(loader: _Loader, node: yaml.Node, key: Key, source: Source) -> Any:
    """A node as plain data; fills in the places of the keys and what is wrong."""
    line = node.start_mark.line + 1
    source.places.setdefault(key, Place(source.name, line))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*key, i), source) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = Place(source.name, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                source.problems.append(Problem(place, key, "a key must be a word"))
                continue
            here = (*key, key_node.value)
            if key_node.value in result:
                source.problems.append(Problem(place, here, f"given twice (first on line {source.places[here].line})"))
                continue
            source.places[here] = place
            result[key_node.value] = _plain(loader, value_node, here, source)
        return result
    try:
        return loader.construct_object(node)
    except ValueError as error:
        source.problems.append(Problem(Place(source.name, line), key, f"cannot be read: {error}"))
        return None
