"""`paras2s convert`: a checkpoint that is a pickle to safetensors, once."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(help="A .bin or .pt file of tensors, or a pytorch_model.bin.index.json.")],
    out: Annotated[Path | None, typer.Argument(help="The new file (default: model.safetensors beside it).")] = None,
    key: Annotated[str, typer.Option("--key", help="Which mapping of the file holds the tensors, where it holds several.")] = "",
) -> None:
    """Convert a checkpoint that is a pickle to safetensors.

    A pickle is a program. This one is read in a process of its own, which takes tensors and nothing else from it; still, convert only
    what you trust.
    """
    from paras2s_cli.errors import UsageError
    from paras2s_cli.models.convert import convert_pickle, convert_shards
    from paras2s_cli.models.weights import INDEX, WHOLE

    if file.suffix == ".json":
        if out or key:
            raise UsageError(f"{file}: the shards of an index are converted beside it, without OUT and --key")
        target, found = file.with_name(INDEX), convert_shards(file)
    else:
        target = out or file.with_name(WHOLE)
        found = convert_pickle(file, target, key)
    typer.echo(f"{target}\t{found['tensors']} tensors\t{found['bytes']} bytes")
