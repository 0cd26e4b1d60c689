"""Loading recipes: names, nesting, overrides, and every error at once with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe import catalog
from paras2s_cli.recipe.base import RecipeBase
from paras2s_cli.recipe.load import dump_recipe, load_recipe, recipe_hash
from paras2s_cli.recipe.source import parse_source


class Train(RecipeBase):
    steps: int = Field(100, gt=0)
    lr: float = 2e-4
    precision: Literal["float32", "bfloat16"] = "float32"


class Sft(RecipeBase):
    kind: Literal["sft"] = "sft"
    rows: int
    train: Train = Train()
    note: str = ""


class Align(RecipeBase):
    kind: Literal["align"] = "align"
    sft: Sft
    train: Train = Train(steps=7)
    warm: Sft | None = None
    systems: list[str] = Field(["base", "aligned"])
    stages: list[Train] = Field([])
    weights: dict[str, float] = Field({})

    @model_validator(mode="after")
    def _agree(self) -> Align:
        if self.train.steps == 13:
            raise ValueError("13 steps bring bad luck")
        return self


class Loop(RecipeBase):
    kind: Literal["loop"] = "loop"
    again: Loop | None = None


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed recipes: toy/sft and toy/align, which names it."""
    folder = tmp_path / "installed"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "sft.yaml").write_text("# Warm up.\nkind: sft\nrows: 10\ntrain:\n  steps: 5\n  lr: 3e-4\n")
    (folder / "toy" / "align.yaml").write_text("# Align it.\nkind: align\nsft: toy/sft\n")
    monkeypatch.setattr(catalog, "recipes_root", lambda: folder)
    return folder


def write(root: Path, text: str) -> str:
    path = root.parent / "mine.yaml"
    path.write_text(text)
    return str(path)


def problems(name: str, *overrides: str, model: type[RecipeBase] = Align) -> list[str]:
    """The lines of the error, without its first, and without the folder of the file."""
    with pytest.raises(UsageError) as caught:
        load_recipe(name, overrides, model)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith(f"has {len(lines)} error{'s' if len(lines) != 1 else ''}:")
    return [line.strip().rpartition("/mine.yaml")[2] or line.strip() for line in lines]


@pytest.mark.parametrize("name", ["toy", "toy/align"])
def test_a_name_finds_the_recipe_of_the_models_kind(root: Path, name: str) -> None:
    recipe = load_recipe(name, [], Align)
    assert (recipe.sft.rows, recipe.sft.train.steps) == (10, 5)
    assert recipe.sft.train.lr == 3e-4  # YAML 1.1 would read a string here
    assert load_recipe("toy", [], Sft) == recipe.sft


def test_nested_recipes_take_overrides(root: Path) -> None:
    overrides = ["sft.train.steps=11", "systems.0=cascade", "warm=toy/sft", "warm.rows=3", "weights.text=.5"]
    recipe = load_recipe("toy", overrides, Align)
    assert recipe.sft.train == Train(steps=11, lr=3e-4)
    assert recipe.systems == ["cascade", "aligned"]
    assert recipe.warm is not None and (recipe.warm.rows, recipe.warm.train.steps) == (3, 5)
    assert recipe.weights == {"text": 0.5}
    assert load_recipe("toy", ["sft.rows=1", "sft.rows=2"], Align).sft.rows == 2


def test_an_override_inside_a_default_section_keeps_the_rest_of_the_default(root: Path) -> None:
    assert load_recipe("toy", ["train.lr=1"], Align).train == Train(steps=7, lr=1.0)


def test_nested_paths_are_relative_to_their_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "near.yaml").write_text("kind: sft\nrows: 4\n")
    name = write(root, "kind: align\nsft: ./near.yaml\n")
    monkeypatch.chdir("/")
    assert load_recipe(name, [], Align).sft.rows == 4


def test_nested_paths_are_relative_at_every_depth(root: Path) -> None:
    (root.parent / "sub").mkdir()
    name = write(root, "kind: loop\nagain: sub/a.yaml\n")
    (root.parent / "sub" / "a.yaml").write_text("kind: loop\nagain: b.yaml\n")
    (root.parent / "sub" / "b.yaml").write_text("kind: loop\n")
    assert load_recipe(name, [], Loop) == Loop(again=Loop(again=Loop()))


def test_what_an_override_replaces_is_no_longer_blamed(root: Path) -> None:
    name = write(root, "kind: align\nsft:\n  kind: sft\n  rows: 1\n")
    assert problems(name, "sft={kind: sft}") == ["override 'sft={kind: sft}': sft.rows: is missing"]
    assert problems(name, "sft={kind: sft}", "sft.train={}", "sft.rows=1", "sft.train.steps=-1") == [
        "override 'sft.train.steps=-1': sft.train.steps: must be greater than 0, not -1"
    ]


def test_all_errors_at_once_with_lines(root: Path) -> None:
    name = write(
        root,
        "# mine\nkind: align\nsft:\n  kind: sft\n  rows: ten\n  trian:\n    steps: 1\ntrain:\n  steps: 0\n  precision: bfloat61\nlr: 1\n",
    )
    assert problems(name, "trian.steps=3", "train.steps.x=1", "systems.5=a", "nonsense", "train.lr=[") == [
        ':5: sft.rows: must be a valid integer, unable to parse string as an integer, not "ten"',
        ":6: sft.trian: unknown key (did you mean sft.train?)",
        ":9: train.steps: must be greater than 0, not 0",
        ":10: train.precision: must be 'float32' or 'bfloat16', not \"bfloat61\" (did you mean bfloat16?)",
        ":11: lr: unknown key (did you mean train.lr?)",
        "override 'trian.steps=3': trian: unknown key (did you mean train?)",
        "override 'train.steps.x=1': train.steps: is a single value, with no keys below it",
        "override 'systems.5=a': systems.5: the list has 2 items; use an index from 0 to 1",
        "override 'nonsense': write it as section.key=value",
        "override 'train.lr=[': the value is not YAML: expected the node content, but found '<stream end>'",
    ]


def test_an_error_names_the_override_or_the_nested_file_it_came_from(root: Path) -> None:
    (root / "toy" / "sft.yaml").write_text("kind: sft\nrows: 1\nrosw: 2\n")
    assert problems("toy", "sft.train.steps=-1") == [
        "toy/sft.yaml:3: sft.rosw: unknown key (did you mean sft.rows?)",
        "override 'sft.train.steps=-1': sft.train.steps: must be greater than 0, not -1",
    ]


def test_missing_keys_and_checks_across_keys_are_reported(root: Path) -> None:
    name = write(root, "kind: align\nsft:\n  kind: sft\n")
    assert problems(name) == [":2: sft.rows: is missing"]
    assert problems("toy", "train.steps=13") == ["toy/align.yaml:2: 13 steps bring bad luck"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: align\nsft: toy/sft\nsft: toy/sft\n", ":3: sft: given twice (first on line 2)"),
        ("kind: align\ntrain:\n\tsteps: 1\n", ":3: a tab where only spaces may be: indent with spaces"),
        ("- 1\n- 2\n", ":1: a recipe is a mapping of keys to values"),
        ("# nothing\n", ":1: the file is empty"),
        ("kind: align\nsft: 'toy\n", ":3: found unexpected end of stream"),
        ("kind: align\nsft: !!python/object/apply:os.getcwd []\n", ":2: sft: "),
        ("kind: align\nsft: &a\n  rows: *a\n", ":1: nested too deeply, or an alias within itself"),
        ("kind: align\nsft: toy/sft\ntrain:\n  lr: .nan\n", ":4: train.lr: must be a finite number, not NaN"),
        ("kind: align\nsft: toy/stf\n", ":2: sft: no recipe is called 'toy/stf': did you mean toy/sft"),
        ("kind: align\nsft: toy/align\n", ""),
        ("sft: toy/sft\n", ":1: kind: is missing: write `kind: align`"),
        (
            "kind: sft\nrows: 1\nx: 2\n",
            ":1: kind: this recipe is of kind 'sft', where 'align' is needed: `paras2s sft NAME`",
        ),
        ("kind: distill\n", ":1: kind: this recipe is of kind 'distill', where 'align' is needed: `paras2s align reward=NAME` takes it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_once_with_its_line(root: Path, text: str, expected: str) -> None:
    lines = problems(write(root, text))
    assert len(lines) == 1
    assert lines[0].startswith(expected)


def test_circles_are_errors(root: Path) -> None:
    (root / "toy" / "a.yaml").write_text("kind: loop\nagain: toy/b\n")
    (root / "toy" / "b.yaml").write_text("kind: loop\nagain: toy/a\n")
    assert problems("toy/a", model=Loop) == ["toy/b.yaml:2: again.again: recipes that name each other in a circle: a -> b -> a"]


def test_unknown_names_suggest_the_nearest(root: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe is called 'toi/sft': did you mean toy/sft"):
        load_recipe("toi/sft", [], Sft)
    with pytest.raises(UsageError, match=r"gone\.yaml: there is no such recipe file"):
        load_recipe("gone.yaml", [], Sft)


def test_a_file_of_another_kind_is_refused(root: Path) -> None:
    path = root.parent / "noise.yaml"
    path.write_bytes(b"RIFF\n\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"noise\.yaml:2: not UTF-8"):
        load_recipe(str(path), [], Sft)


def test_plain_values_are_read_as_written(root: Path) -> None:
    values = {"no": "no", "on": "on", "'1e-4'": "1e-4", "2024-01-02": "2024-01-02", "12:30": "12:30"}
    for written, read in values.items():
        assert load_recipe("toy", [f"note={written}"], Sft).note == read
    assert load_recipe("toy", ["rows=010"], Sft).rows == 10
    floats = {"2e-4": 2e-4, "2.5E+3": 2500.0, "-.5": -0.5, "1.": 1.0, "1_0.5": 10.5}
    read = {text: parse_source(text, "value").data for text in floats}  # pydantic would take the string too
    assert read == floats and all(type(value) is float for value in read.values())
    assert load_recipe("toy", ["rows=1_000"], Sft).rows == 1000


@pytest.mark.parametrize("note", ["1e-4", "no", "null", "", "a: b", "12", "ünï", "2024-01-02", "two\nlines"])
def test_a_dumped_recipe_loads_to_the_same(root: Path, note: str) -> None:
    recipe = Align(sft=Sft(rows=1, note=note, train=Train(lr=1e-05)), stages=[Train()])
    assert load_recipe(write(root, dump_recipe(recipe)), [], Align) == recipe


def test_the_hash_tells_values_and_nothing_else(root: Path) -> None:
    plain = load_recipe("toy", [], Align)
    spelled = load_recipe("toy", ["train.steps=7", "sft.train.lr=0.0003"], Align)
    assert recipe_hash(plain) == recipe_hash(spelled)
    assert recipe_hash(plain) != recipe_hash(load_recipe("toy", ["train.steps=8"], Align))
    assert recipe_hash(Train()) == "d7a2213393c7"  # a run folder is known by it: it may not drift


def test_the_list_has_kind_and_first_comment(root: Path) -> None:
    found = [(info.name, info.kind, info.summary) for info in catalog.list_recipes()]
    assert found == [("toy/align", "align", "Align it."), ("toy/sft", "sft", "Warm up.")]
