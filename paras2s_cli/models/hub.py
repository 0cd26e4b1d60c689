"""Checkpoints by their place: a folder, or a name on the Hugging Face hub."""

import re
from pathlib import Path

from paras2s_cli.errors import UsageError

PATTERNS = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.jinja", "*.model", "*.pt")
"""Files of a repository that are fetched. Pickles are the voices of Qwen2.5-Omni, and Kimi-Audio's voice, which `paras2s convert` reads."""


def local_folder(source: str | Path, *, download: bool = True) -> Path:
    """The folder of a checkpoint; what the hub's cache has is not asked for again.

    Args:
        download: False looks no further than this machine, and gives `source` itself for what is not on it.

    Raises:
        UsageError: neither a folder nor a repository that the hub gives.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    trouble = "a name on the hub is OWNER/MODEL"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        for offline in (True, False) if download else (True,):
            try:
                return Path(snapshot_download(str(source), allow_patterns=list(PATTERNS), local_files_only=offline))
            except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                trouble = str(error).splitlines()[0]
    if download:
        raise UsageError(f"{source} is neither a folder nor a model that the hub gives ({trouble})")
    return folder
