"""The verdict of a model whose probabilities of the labels 1 to 5 are known."""

import math
from collections.abc import Sequence

from paras2s_cli.judge.stages import Verdict

LABELS = "12345"


def label_verdict(labels: Sequence[float], mass: float, floor: float, key: str) -> Verdict:
    """The expected label, or the failure.

    Args:
        labels: probabilities of the five among themselves. mass: what they have together of all that could be said next.
        floor: the least mass that gives a score. key: the recipe's name for it.
    """
    if not (math.isfinite(mass) and all(map(math.isfinite, labels))):
        return Verdict(None, None, None, "The model's logits are not finite.", "judge-failed")
    best = max(range(len(labels)), key=labels.__getitem__)
    more = {
        "label": int(LABELS[best]),
        "labels": {label: round(value, 6) for label, value in zip(LABELS, labels, strict=True)},
        "label_mass": round(mass, 6),
    }
    if mass < floor:
        reason = f"The labels 1 to 5 have {mass:.2g} of the probability, less than {key} {floor:g}."
        return Verdict(None, None, None, f"{reason} The model would not reply with a score.", "wrong-schema", more=more)
    score = sum(int(label) * value for label, value in zip(LABELS, labels, strict=True))
    reason = f"The likeliest score is {LABELS[best]}, with {labels[best]:.2f} of the labels' probability."
    return Verdict(None, None, min(5.0, max(1.0, round(score, 6))), reason, more=more)
