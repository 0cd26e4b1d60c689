"""Models that hear, and what prepares their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.pretrained import device_of, dtype_of, read_pretrained, version_name
from paras2s_cli.judge.stages import RATE
from paras2s_cli.recipe.models import LocalModel


@dataclass(frozen=True)
class Loaded:
    """A model in its place, what makes features of sound and tokens of text for it, and a name that is another one when the weights or
    their dtype are."""

    model: Any
    extractor: Any
    tokenizer: Any
    name: str


def load_model(settings: LocalModel, key: str, classes: Mapping[str, str]) -> Loaded:
    """The model that a recipe's section names, for inference.

    Args:
        key: the section's, for messages.
        classes: the classes of the transformers library that may be loaded, by `model_type` in config.json.

    Raises:
        UsageError: there is no such model or device, or it is another kind of model, or not whole.
    """
    import transformers

    # What the library tells is for programmers; what a user has to know is raised below.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = device_of(settings, key)
    config = read_pretrained(settings, key, transformers.AutoConfig.from_pretrained)
    if config.model_type not in classes:
        raise UsageError(f"{key}.model: {settings.model} is a model of type '{config.model_type}', and not {' or '.join(classes)}")
    # No AutoProcessor: that of Qwen2.5-Omni wants packages for images.
    extractor = read_pretrained(settings, key, transformers.AutoFeatureExtractor.from_pretrained)
    tokenizer = read_pretrained(settings, key, transformers.AutoTokenizer.from_pretrained)
    kind = getattr(transformers, classes[config.model_type])
    options = {"dtype": dtype_of(settings, device), "use_safetensors": True, "output_loading_info": True}
    model, report = read_pretrained(settings, key, kind.from_pretrained, **options)
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UsageError(f"{key}.model: {settings.model} lacks {len(report['missing_keys'])} of its weights ({some}); download it again")
    if extractor.sampling_rate != RATE:
        raise UsageError(f"{key}.model: {settings.model} hears at {extractor.sampling_rate} Hz, the judge at {RATE}; choose another")
    version = version_name(settings.model, settings.revision, getattr(config, "_commit_hash", None))
    return Loaded(model.to(device).eval(), extractor, tokenizer, f"{version} {str(model.dtype).removeprefix('torch.')}")
