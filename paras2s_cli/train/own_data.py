"""Training data of one's own: demonstrations and unlabelled queries from manifests, for models that hear recordings as they are."""

from collections import Counter
from pathlib import Path

import numpy as np

from paras2s_cli.audio.features import SIZE
from paras2s_cli.data import rows
from paras2s_cli.data.manifest import read_rows
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.train.demonstrations import Demonstration, best_demonstrations, draw_demonstrations

_UNHEARD = np.empty((0, SIZE), np.float32)
"""Features are a small model's; those that take recordings have none."""


def read_demonstrations(manifest: str, held_out: float, seed: int) -> tuple[list[Demonstration], list[Demonstration]]:
    """The demonstrations of a manifest: those to learn from, and a share of `held_out`, at least one, to measure on.

    Raises:
        UsageError: the manifest cannot be read, or has fewer than two rows.
    """
    found = [
        Demonstration(_spoken(row.query.id, row.query.audio, row.query.text), _spoken(row.query.id, row.audio, row.text))
        for row in read_rows(Path(manifest), rows.Demonstration)
    ]
    if len(found) < 2:
        raise UsageError(f"{manifest} holds {len(found)} demonstrations; it takes one to learn from and one to measure on, at least")
    order = np.random.default_rng([seed, 53]).permutation(len(found))
    kept = min(len(found) - 1, max(1, round(held_out * len(found))))
    return [found[i] for i in order[kept:]], [found[i] for i in order[:kept]]


def read_queries(manifest: str) -> list[Spoken]:
    """The queries of a manifest that are for training or of no split.

    Raises:
        UsageError: it cannot be read, an id is there twice, or there are none.
    """
    found = [row for row in read_rows(Path(manifest), rows.Query) if row.split in (None, "train")]
    if not found:
        raise UsageError(f"{manifest} holds no queries to train on; write one JSON row a line, with no split or with the split train")
    (name, count), *_ = Counter(row.id for row in found).most_common(1)
    if count > 1:  # recordings are known by their ids
        raise UsageError(f"{manifest}: the id {name!r} is there {count} times; every query needs one of its own")
    return [_spoken(row.id, row.audio, row.text, row.requirement) for row in found]


def demonstrations_of(recipe: SftRecipe, world: World) -> tuple[list[Demonstration], list[Demonstration]]:
    """What a recipe's base is to learn, and what it is measured on. Raises UsageError as `read_demonstrations`."""
    if recipe.data is not None:
        return read_demonstrations(recipe.data, recipe.held_out, recipe.seed)
    learnt = draw_demonstrations(world, recipe.demonstrations, recipe.seed)
    return learnt, best_demonstrations(world, world.queries("validation"), recipe.seed)


def _spoken(name: str, audio: Path, text: str | None, requirement: str | None = None) -> Spoken:
    return Spoken({"id": name, "text": text or "", "requirement": requirement}, audio, _UNHEARD)
