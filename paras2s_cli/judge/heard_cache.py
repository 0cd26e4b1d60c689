"""What was heard before, on disk: an utterance that was listened to once is not listened to again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from paras2s_cli.judge.content_cache import ContentCache
from paras2s_cli.judge.stages import Heard, Span, Toned, Utterance


class HeardCache(ContentCache[Utterance]):
    """Utterances by `utterance_key`, of one version of a listener."""

    def __init__(self, listener: str, say: Callable[[str], None], *, keep: bool = True) -> None:
        super().__init__(listener, "utterances.sqlite", say, keep=keep)

    def _dump(self, value: Utterance) -> str:
        return json.dumps(utterance_fields(value), default=float)

    def _parse(self, text: str) -> Utterance | None:
        try:
            return utterance_of(json.loads(text))
        except (ValueError, TypeError, KeyError):
            return None


def utterance_fields(value: Utterance) -> dict[str, Any]:
    """An utterance for JSON; of a recording all but the wave."""
    return asdict(Utterance(value.heard, value.toned, value.words))


def utterance_of(fields: Mapping[str, Any]) -> Utterance:
    """What `utterance_fields` told. Raises ValueError, TypeError or KeyError for anything else."""
    heard = fields["heard"]
    spans = tuple(Span(*span) for span in heard.get("spans", ()))
    return Utterance(Heard(**(heard | {"spans": spans})), Toned(**fields["toned"]), str(fields["words"]))
