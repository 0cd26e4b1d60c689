"""What the verbs that take `RECIPE [section.key=value ...]` share."""

from collections.abc import Sequence
from pathlib import Path

from paras2s_cli.errors import UsageError


def recipe_words(words: Sequence[str] | None, default: str = "pocket") -> tuple[str, list[str]]:
    """The recipe's name and the overrides in a verb's arguments, in any order.

    Raises:
        UsageError: two words could be the name.
    """
    names = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(names) > 1:
        raise UsageError(f"one recipe at a time: {' and '.join(names)} are {len(names)} (changes are written section.key=value)")
    return (names[0] if names else default), overrides


def kind_called(name: str, verb: str, kinds: Sequence[str]) -> str:
    """Which kind of recipe a name means: the one the file says if the verb runs it, else the verb's own, for the loader to complain."""
    from paras2s_cli.recipe.catalog import find_recipe
    from paras2s_cli.recipe.source import read_source

    file = find_recipe(name, verb)
    data = read_source(file.path, file.label).data
    said = data.get("kind") if isinstance(data, dict) else None
    return said if isinstance(said, str) and said in kinds else verb


def stem_of(name: str) -> str:
    """What a recipe's run folder is called after: the last part of its name, or its file without the ending."""
    return Path(name).name.removesuffix(".yaml").removesuffix(".yml")
