"""The two networks: what is beside an utterance in a batch changes nothing, and what augmentation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.judge.ears import LETTERS, Describer, Transcriber, augment, best_path, mask_of, pad, spell


@pytest.fixture(scope="module")
def tables() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(length, SIZE)).astype(np.float32) for length in (7, 60, 33, 1)]


def test_padding_is_zeros_and_lengths_are_kept(tables: list[np.ndarray]) -> None:
    x, lengths = pad(tables)
    assert x.shape == (4, 60, SIZE) and lengths.tolist() == [7, 60, 33, 1]
    assert (x[0, :7].numpy() == tables[0]).all() and (x[0, 7:] == 0).all()
    assert mask_of(lengths, 60).sum(1).tolist() == lengths.tolist()


def test_a_transcription_does_not_depend_on_the_batch(tables: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    model = Transcriber(24).eval()
    with torch.no_grad():
        together = model(*pad(tables))
        for i, table in enumerate(tables):
            alone = model(*pad([table]))[0]
            torch.testing.assert_close(together[i, : len(table)], alone, atol=1e-5, rtol=1e-5)
    assert together.shape == (4, 60, len(LETTERS) + 1)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(4, 60))


def test_a_description_does_not_depend_on_the_batch(tables: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    model = Describer(13, 24).eval()
    with torch.no_grad():
        together = model(*pad(tables))
        assert [tuple(t.shape) for t in together] == [(4, 13), (4, 2), (4, 2)]
        for i, table in enumerate(tables):
            for batched, alone in zip(together, model(*pad([table])), strict=True):
                torch.testing.assert_close(batched[i], alone[0], atol=1e-5, rtol=1e-5)
                assert torch.isfinite(alone).all()


def test_augmentation_hides_a_band_and_a_stretch_and_leaves_the_original() -> None:
    x = torch.full((16, 50, SIZE), 3.0)
    found = augment(x, torch.Generator().manual_seed(1))
    assert (x == 3).all() and found.shape == x.shape
    hidden = found == 0
    assert hidden.any() and hidden.float().mean() < 0.4
    shifts = (found - x).masked_fill(hidden, torch.nan)
    means = shifts.nanmean(1)[:, : SIZE - 4]
    assert means[~means.isnan()].std() == pytest.approx(0.08, rel=0.3)
    assert (shifts[:, :, -2:].nan_to_num() == 0).all(), "voicing and loudness stay"
    steady = shifts[:, :, SIZE - 4 : SIZE - 3].nan_to_num()
    assert ((steady == 0) | (steady == steady.abs().amax(1, keepdim=True) * steady.sign())).all(), "a melody moves as a whole"
    assert (found == augment(x, torch.Generator().manual_seed(1))).all()
    assert (found != augment(x, torch.Generator().manual_seed(2))).any()


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("How wonderful! Enjoy it.", "how wonderful enjoy it"), ("  A--b\tC\n", "a b c"), ("", ""), ("123 ?!", ""), ("Été", "t")],
)
def test_spelling(text: str, spelled: str) -> None:
    assert spell(text) == spelled and spell(spelled) == spelled


def path(letters: str) -> torch.Tensor:
    """Log-probabilities whose best path is these letters, `-` for blank."""
    columns = torch.tensor([0 if c == "-" else LETTERS.index(c) + 1 for c in letters])
    return torch.nn.functional.one_hot(columns, len(LETTERS) + 1).float().log_softmax(-1)


@pytest.mark.parametrize(
    ("letters", "text"), [("hh-e-ll-l-o", "hello"), ("---", ""), ("a  b", "a b"), (" -a- - b ", "a b"), ("a-a", "aa"), ("aa", "a")]
)
def test_the_best_path_in_letters(letters: str, text: str) -> None:
    assert best_path(path(letters)) == text
