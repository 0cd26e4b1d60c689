"""What `paras2s judge --emit-batch` does: hear the pairs, and write what an endpoint would be asked."""

from pathlib import Path

from paras2s_cli.judge.backends import Say, assemble_judge
from paras2s_cli.judge.endpoint.batch import BatchFile
from paras2s_cli.judge.run import Settings, Watch, read_manifest
from paras2s_cli.judge.stream import judge_stream
from paras2s_cli.judge.windows import sound_seconds


def emit_batch(manifest: str, file: Path, settings: Settings, say: Say, watch: Watch) -> None:
    """The requests about a manifest's pairs (`-`: stdin), but for those that the cache can answer. Nothing is asked.

    Raises UsageError, having written nothing, for a manifest, a recipe or a `file` that cannot be used.
    """
    recipe, (rows, folder) = settings.load_recipe(), read_manifest(manifest, settings)
    settings.asking.tell_cost(recipe, len(rows), sum(map(sound_seconds, rows)), say)
    with BatchFile(file) as batch:
        judge = assemble_judge(recipe, say, settings.asking.scorer(recipe.endpoint, say, batch), settings.asking)
        stream = judge_stream(
            judge,
            settings.heard_cache(recipe, judge.listener.name, say),
            rows,
            [False] * len(rows),
            folder=folder,
            closed=settings.closed,
            max_seconds=settings.max_seconds,
            batch=settings.batch,
        )
        unasked = 0
        for done, row in enumerate(stream, start=1):
            unasked += row.failure != "no-reply"
            watch(done, len(rows))
    say(f"{len(batch)} requests in {file}; {unasked} of {len(rows)} pairs need none")
    joined = f" --queries {settings.queries}" if settings.queries else ""
    again = f"paras2s judge {manifest}{joined} --judge {settings.judge} --read-batch REPLIES.jsonl"
    say(f"have a batch API or `vllm run-batch` answer them, then: {again}")
