"""Stages that train an adapter in the place of the weights."""

from pathlib import Path

from paras2s_cli.data.cache import publish_folder
from paras2s_cli.models.folder import save_model
from paras2s_cli.models.lora import Adapter, add_lora
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.training import Lora


def make_adapter(model: SpeechLM, settings: Lora | None, seed: int) -> Adapter | None:
    """The adapter that a recipe asks for, put on the model. Raises UsageError when peft is not installed."""
    return None if settings is None else add_lora(model, **settings.model_dump(exclude={"merge"}), seed=seed)


def publish_trained(
    folder: Path, model: SpeechLM, tokenizer: TextTokenizer, adapter: Adapter | None = None, settings: Lora | None = None
) -> None:
    """Writes what a stage has trained: the model, with its adapter merged if it has one, or the adapter alone if the recipe says so."""
    with publish_folder(folder) as temporary:
        if adapter is not None and settings is not None and not settings.merge:
            adapter.save(temporary)
            return
        if adapter is not None:
            adapter.merge()
        save_model(temporary, model, tokenizer)
