"""Judges by name. Nothing is imported before it is asked for."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from paras2s_cli.judge.pipeline import Judge

if TYPE_CHECKING:
    from paras2s_cli.judge.endpoint.asking import Asking
    from paras2s_cli.judge.endpoint.scorer import EndpointScorer, Sender
    from paras2s_cli.judge.hearing.pair_scorer import PairScorer
    from paras2s_cli.judge.local.scorer import LocalScorer
    from paras2s_cli.judge.stages import Describer, Scorer, Transcriber
    from paras2s_cli.recipe.judging import AudioLM, JudgeRecipe, PolytoneRecipe, Transcriptions, Whisper

MAKERS = {"pocket": "paras2s_cli.train.polytone:make_judge"}
"""World -> the function that makes its judge from a recipe, training what the cache lacks."""

Say = Callable[[str], None]


def load_judge(recipe: "PolytoneRecipe", say: Say, scorer: "Scorer | None" = None) -> Judge:
    """The judge of a recipe's world, or its ears before another `scorer`. `say` is told in a sentence what has to be made first.

    Raises:
        UsageError: a package that the backend needs is missing, or the cache cannot be written.
    """
    module, function = MAKERS[recipe.world].split(":")
    judge: Judge = getattr(importlib.import_module(module), function)(recipe, say)
    if scorer is not None:
        judge.scorer = scorer
    return judge


def assemble_judge(recipe: "JudgeRecipe", say: Say, scorer: "Scorer | None", asking: "Asking") -> Judge:
    """The judge of a judge's recipe: each stage the backend that it names, else the ears' own.

    Raises:
        UsageError: a model cannot be loaded, or as `load_judge`.
    """
    from paras2s_cli.judge.end_to_end import EndToEndJudge
    from paras2s_cli.judge.hearing.staged import StagedListener

    if recipe.e2e is not None:
        assert scorer is not None  # see `load_scorer`
        return EndToEndJudge(scorer)
    transcriber = load_transcriber(recipe.transcribe, say, asking) if recipe.transcribe else None
    describer = load_describer(recipe.tone, say) if recipe.tone else None
    if transcriber is not None and describer is not None:
        assert scorer is not None  # here and below, the recipe's model sees to it
        return Judge(StagedListener(transcriber, describer, None), scorer)
    assert recipe.ears is not None
    judge = load_judge(recipe.ears, say, scorer)
    if transcriber is not None and hasattr(judge.listener, "open_speech"):
        judge.listener.open_speech = None  # a recogniser of words that are not wanted
    if transcriber is not None or describer is not None:
        judge.listener = StagedListener(transcriber, describer, judge.listener)
    return judge


def load_transcriber(settings: "Whisper | Transcriptions", say: Say, asking: "Asking") -> "Transcriber":
    """The first stage. Raises UsageError for a model that cannot be loaded, or an endpoint that cannot be used."""
    if settings.backend == "endpoint":
        return asking.transcriber(settings, say)
    from paras2s_cli.judge.hearing.whisper import WhisperTranscriber

    say(f"loading {settings.model}")
    return WhisperTranscriber(settings)


def load_describer(settings: "AudioLM", say: Say) -> "Describer":
    """The second stage. Raises UsageError for a model that cannot be loaded."""
    from paras2s_cli.judge.hearing.tone import AudioLMDescriber

    say(f"loading {settings.model}")
    return AudioLMDescriber(settings)


def load_scorer(
    recipe: "JudgeRecipe", say: Say, asking: "Asking", sender: "Sender | None" = None
) -> "EndpointScorer | LocalScorer | PairScorer | None":
    """The third stage; None where it is that of the ears' world. An endpoint is asked through `sender` where there is one.

    Raises UsageError for one that cannot be used.
    """
    from paras2s_cli.recipe.judging import LocalLM

    if recipe.e2e is not None:
        from paras2s_cli.judge.hearing.pair_scorer import PairScorer

        say(f"loading {recipe.e2e.model}")
        return PairScorer(recipe.e2e, say)
    if isinstance(recipe.score, LocalLM):
        from paras2s_cli.judge.local import scorer

        return scorer.load_scorer(recipe.score, say)
    return asking.scorer(recipe.score, say, sender)
