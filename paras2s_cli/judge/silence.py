"""The verdict where there are no words to score: no scorer has to be asked for it."""

from paras2s_cli.judge.stages import Heard, Verdict


def verdict_on_silence(query: Heard, answer: Heard) -> Verdict | None:
    """The verdict on a pair of which one side could not be heard, or is silent; None where both speak."""
    for heard in (query, answer):
        if heard.failure is not None:
            return Verdict(None, None, None, heard.reason, heard.failure)
    if not answer.speech:
        return Verdict(1, 1, 1, f"The answer holds no speech ({answer.nothing}).")
    if not query.speech:
        return Verdict(None, None, None, f"The query holds no speech ({query.nothing}), so nothing can fit it.", "outside-world")
    return None
