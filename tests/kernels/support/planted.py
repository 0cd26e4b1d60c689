"""A copy of a source file with one bug planted in it, loaded as a module of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def with_bug(source: Path, scratch: Path, name: str, right: str, wrong: str) -> ModuleType:
    """`source` with its only `right` made `wrong`; AssertionError when it does not occur just once."""
    text = source.read_text()
    assert text.count(right) == 1, f"{name}: {right!r} occurs {text.count(right)} times in {source.name}"
    planted = scratch / f"planted_{name}.py"
    planted.write_text(text.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(planted.stem, planted)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[planted.stem] = module
    spec.loader.exec_module(module)
    return module
