"""Requests as a file, and a file of replies: the JSONL that OpenAI's batch API and `vllm run-batch` take and give."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from paras2s_cli.data.atomic import remove, temp_beside, writing
from paras2s_cli.data.manifest import append_row
from paras2s_cli.endpoint.client import Call, Keep, Outcome
from paras2s_cli.endpoint.cost import price
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.endpoint.verdict import Answer, read_completion, read_response
from paras2s_cli.recipe.servers import Endpoint


class BatchFile:
    """Takes requests instead of sending them. A context manager: the file is there when the block ends, whole, or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: set[str] = set()

    def __len__(self) -> int:
        """Requests so far; calls that are equal are one."""
        return len(self._written)

    def __enter__(self) -> "BatchFile":
        self._temp = temp_beside(self.path)
        with writing(self.path):
            if self.path.exists() and not self.path.is_file():
                raise UsageError(f"cannot write {self.path}: it is not a file; choose another name")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temp, "xb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with writing(self.path):
            self._file.close()
            if kind is None:
                os.replace(self._temp, self.path)
        remove(self._temp)

    def send(self, calls: Sequence[Call], keep: Keep[Answer]) -> list[Outcome[Answer]]:
        """Writes them. No call has a verdict yet."""
        with writing(self.path):
            for call in calls:
                if call.key not in self._written:
                    append_row(self._file, {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions", "body": call.body})
                    self._written.add(call.key)
        return [Outcome(Fault("no-reply", f"asked in {self.path}")) for _ in calls]


class BatchReplies:
    """Answers calls from files of replies."""

    def __init__(self, endpoint: Endpoint, paths: Sequence[Path]) -> None:
        """Raises UsageError for a file that cannot be read or holds another kind of lines."""
        self._endpoint = endpoint
        self._names = ", ".join(map(str, paths))
        self._results: dict[str, Answer | Fault] = {}
        for path in paths:
            for name, result in _read_file(path):
                # The failure that an error file tells does not undo a verdict.
                if not isinstance(self._results.get(name), Answer):
                    self._results[name] = result

    def send(self, calls: Sequence[Call], keep: Keep[Answer]) -> list[Outcome[Answer]]:
        """One outcome a call, in their order."""
        absent = Fault("no-reply", f"no reply to this pair in {self._names}")
        outcomes = []
        for call in calls:
            result = self._results.get(call.key, absent)
            if isinstance(result, Answer):
                keep(call, result)
            outcomes.append(Outcome(result, price(self._endpoint, result.usage) or 0.0))
        return outcomes


def _read_file(path: Path) -> list[tuple[str, Answer | Fault]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the path") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append((str(row["custom_id"]), _read_row(row)))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UsageError(f"{path}:{number}: not a reply of a batch; name the output file of the batch, as it came") from None
    return found


def _read_row(row: dict[str, Any]) -> Answer | Fault:
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict):
        if error is None and "body" in row:
            raise ValueError("a request")
        return Fault("server-error", f"the batch says: {json.dumps(error)[:200]}")
    status, body = response.get("status_code", 200), response.get("body", response)
    return read_completion(body) if status == 200 else read_response(int(status), {}, json.dumps(body).encode())
