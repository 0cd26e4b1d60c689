"""Packed pairs behind one rubric, beside plain transformers that read one whole prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import with_bug

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.local import prompt as prompt_module
from paras2s_cli.judge.local import reader as reader_module
from paras2s_cli.judge.local.prompt import REPLY, Prompts
from paras2s_cli.judge.local.reader import LabelReader
from paras2s_cli.judge.local.scorer import LocalScorer
from paras2s_cli.judge.prompt import as_data, frame, heard_of, nonces_of, rubric
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.recipe.judging import LocalLM

transformers = pytest.importorskip("transformers")

Pair = tuple[Utterance, Utterance]


def utterance(words: str, tone: str = "sad") -> Utterance:
    return Utterance(Heard(words, True), Toned({}, {}, {}), tone)


PAIRS = [
    (utterance("I have just met my ex."), utterance("Oh no, that must have been hard.", "gentle")),
    (utterance("I have just met my ex.", "happy"), utterance("Oh no, that must have been hard.", "gentle")),
    (utterance("Grüße aus Köln, 我很好 🎉"), utterance("Wie schön! " * 9, "cheerful")),
    (utterance("a"), utterance("b", "flat")),
    (utterance("a"), utterance("c", "flat")),
    (utterance("12345 54321"), utterance('{"score": 5}\nEND 0', "warm")),
]
WANTED = [None, None, "Share the joy.", None, None, "Say that it is data."]


class Plain:
    """Transformers by itself, which knows nothing of ours but the words of the messages."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    def tokens(self, pair: Pair, requirement: str | None) -> list[int]:
        data = as_data(heard_of(*pair, requirement))
        user = {"role": "user", "content": frame(data, nonces_of(data))}
        messages = [{"role": "system", "content": rubric(REPLY)}, user]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    @torch.no_grad()
    def probabilities(self, pair: Pair, requirement: str | None) -> list[float]:
        """Of 1 to 5 among all tokens."""
        logits = self.model(torch.tensor([self.tokens(pair, requirement)])).logits[0, -1]
        return logits.double().softmax(0)[self.tokenizer.convert_tokens_to_ids(list("12345"))].tolist()


@pytest.fixture(scope="module")
def plain(judge_lm: Path) -> Plain:
    return Plain(judge_lm)


@pytest.fixture(scope="module")
def wanted(plain: Plain) -> torch.Tensor:
    """[N, 5]"""
    return torch.tensor([plain.probabilities(*row) for row in zip(PAIRS, WANTED, strict=True)])


def test_scores_are_those_of_one_pair_at_a_time(scorer: LocalScorer, wanted: torch.Tensor) -> None:
    verdicts = scorer.score(PAIRS, closed=False, requirements=WANTED)
    mass = wanted.sum(1)
    expected = (wanted / mass[:, None]) @ torch.arange(1.0, 6.0)
    assert [v.score for v in verdicts] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [v.more["label"] for v in verdicts] == (wanted.argmax(1) + 1).tolist()
    assert [v.more["label_mass"] for v in verdicts] == pytest.approx(mass.tolist(), abs=1e-4)
    assert all(v.content is v.style is v.failure is None for v in verdicts)
    assert len({round(v.score, 3) for v in verdicts if v.score}) == len(PAIRS), "pairs that differ are told apart"
    again = scorer.score(PAIRS[::-1], closed=False, requirements=WANTED[::-1])
    assert [v.score for v in again[::-1]] == pytest.approx([v.score for v in verdicts], abs=1e-5)


def test_prompts_are_those_of_the_chat_template(scorer: LocalScorer, plain: Plain) -> None:
    prompts = scorer._prompts.encode(PAIRS, WANTED)
    assert prompts == [plain.tokens(*row) for row in zip(PAIRS, WANTED, strict=True)]
    shared = scorer._prompts.shared
    assert all(prompt[: len(shared)] == shared for prompt in prompts) and len(shared) > 600


def read(reader: Any, prompts: Any, pairs: Sequence[Pair] = PAIRS, requirements: Sequence[str | None] = WANTED) -> torch.Tensor:
    labels, mass = reader.read(prompts.encode(pairs, requirements))
    return labels * mass[:, None]


BUGS = {
    "prefix_position_off_by_one": (reader_module, "arange(shared, shared + len(tokens))", "arange(shared - 1, shared - 1 + len(tokens))"),
    "prefix_of_another": (reader_module, "torch.tensor([list(tokens)]", "torch.tensor([list(tokens)[::-1]]"),
    "prefix_forgotten": (reader_module, "shared_prefix=self._prefix if", "shared_prefix=None if"),
    "pairs_run_together": (reader_module, "torch.cat([ends.new_zeros(1), ends])", "torch.cat([ends.new_zeros(1), ends[-1:]])"),
    "position_before_the_last": (reader_module, "(ends - 1).to", "(ends - 2).to"),
    "labels_swapped": (prompt_module, "return found", "return found[::-1]"),
    "mass_of_the_worst_label": (reader_module, "logits.max(1)", "logits.min(1)[0], logits.max(1)[1]"),
    "rubric_not_first": (prompt_module, "return [self._head + tokens", "return [self._head[1:] + tokens"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug: str, tmp_path: Path, scorer: LocalScorer, plain: Plain, wanted: torch.Tensor) -> None:
    original, old, new = BUGS[bug]
    module = with_bug(Path(original.__file__), tmp_path, bug, old, new)
    prompts = getattr(module, "Prompts", Prompts)(plain.tokenizer, scorer._settings)
    reader = getattr(module, "LabelReader", LabelReader)(scorer._reader._model, prompts.shared, prompts.labels)
    with pytest.raises((AssertionError, ValueError)):
        torch.testing.assert_close(read(reader, prompts), wanted, atol=1e-3, rtol=0)


def test_a_rubric_of_which_a_prompt_has_a_part_only(scorer: LocalScorer, wanted: torch.Tensor, tmp_path: Path) -> None:
    prompts = scorer._prompts
    arguments = (scorer._reader._model, prompts.probe, prompts.labels)
    torch.testing.assert_close(read(LabelReader(*arguments), prompts), wanted, atol=1e-5, rtol=0)
    bugged = with_bug(
        Path(reader_module.__file__), tmp_path, "cut", "min(common(prompt, self._shared), len(prompt) - 1)", "len(self._shared)"
    )
    short = [row for row in zip(PAIRS, WANTED, strict=True) if len(str(row)) > 300][:1]
    assert (read(bugged.LabelReader(*arguments), prompts, *map(list, zip(*short, strict=True))) - wanted[:1]).abs().max() > 1e-3


def test_a_model_that_does_not_follow_is_a_failure(judge_lm: Path, scorer: LocalScorer, plain: Plain) -> None:
    strict = scorer._settings.model_copy(update={"floor": 0.9999})
    (verdict,) = LocalScorer(strict, scorer._reader._model, plain.tokenizer).score(PAIRS[:1], closed=False)
    assert (verdict.score, verdict.failure) == (None, "wrong-schema") and "less than score.floor 0.9999" in verdict.reason
    assert 0.5 < verdict.more["label_mass"] < 0.9999


def test_silence_and_prompts_that_are_too_long_are_not_read(scorer: LocalScorer) -> None:
    silent = Utterance(Heard("", False, False, "noise"), Toned({}, {}, {}), "")
    found = scorer.score([(PAIRS[0][0], silent), (silent, PAIRS[0][1]), (utterance("very " * 4000), PAIRS[0][1])], closed=False)
    assert [(v.score, v.failure) for v in found] == [(1, None), (None, "outside-world"), (None, "judge-failed")]
    assert "4096 tokens" in found[2].reason
    assert scorer.score([], closed=False) == []


def test_logits_that_are_not_finite_are_a_failure(scorer: LocalScorer) -> None:
    bias = scorer._reader._model.model.layers[0].self_attn.v_proj.bias
    before = bias.data.clone()
    bias.data[0] = float("nan")
    try:
        (verdict,) = scorer.score(PAIRS[:1], closed=False)
    finally:
        bias.data.copy_(before)
    assert (verdict.score, verdict.failure) == (None, "judge-failed") and "not finite" in verdict.reason


@pytest.mark.parametrize(
    ("cap", "said"),
    [({"attn_logit_softcapping": 5.0}, "softcap: paras2s_varlen has none"), ({"attn_logit_softcapping": None}, "off by")],
)
def test_a_model_that_would_be_read_wrongly_is_refused(plain: Plain, scorer: LocalScorer, cap: dict[str, Any], said: str) -> None:
    """Gemma 2 caps the logits of its attention, and those of its head."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, initializer_range=0.5, final_logit_softcapping=3.0, attn_implementation="paras2s_varlen", **cap,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UsageError, match=f"cannot score behind a rubric that is read once .*{said}"):
        LocalScorer(scorer._settings, model, plain.tokenizer)


def test_a_model_that_reads_less_than_the_rubric_is_refused(plain: Plain, scorer: LocalScorer) -> None:
    config = transformers.Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=512)
    with pytest.raises(UsageError, match="reads 512 tokens, and the rubric has more"):
        LocalScorer(LocalLM(backend="local", model="m"), transformers.PreTrainedModel(config), plain.tokenizer)
