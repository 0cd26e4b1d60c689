"""The base of a small world: a speech LM from nothing that answers in speech and is deaf to tone. Kept in the cache, as a downloaded
model would be."""

from pathlib import Path

from paras2s_cli.audio.features import SIZE
from paras2s_cli.data.cache import cache_root, content_key, folder_lock, is_complete, publish_folder
from paras2s_cli.data.worlds import World
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.hub import local_folder
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.load import recipe_hash
from paras2s_cli.recipe.speaking import BaseRecipe, CheckpointBase
from paras2s_cli.train.demonstrations import description
from paras2s_cli.train.loop import Say, WatchOf, train
from paras2s_cli.train.sft import base_stage


def base_folder(recipe: BaseRecipe, world: World) -> Path:
    """Where the cache keeps the base of a recipe."""
    return cache_root() / f"base-{content_key(recipe_hash(recipe), world.key)}"


def texts_of(world: World) -> list[str]:
    """All that a base has to read or write."""
    spoken = [*world.queries("train"), *world.polytone(), *world.carriers(), *world.answers()]
    return [*world.known_texts("query"), *(u.row["text"] for u in spoken), *(description(u) for u in spoken)]


def load_base(recipe: BaseRecipe | CheckpointBase, world: World, say: Say, watch: WatchOf | None = None) -> tuple[SpeechLM, TextTokenizer]:
    """The base of a recipe: a folder's, or one that is trained if the cache lacks it; a killed training goes on where it was."""
    if isinstance(recipe, CheckpointBase):
        return load_model(local_folder(recipe.folder))
    final = base_folder(recipe, world)
    if not is_complete(final):
        with folder_lock(final):
            if not is_complete(final):
                say("training the base model, which speaks but is deaf to tone: it is not in the cache")
                tokenizer = word_tokenizer(texts_of(world))
                shape = recipe.model.model_dump()
                model = new_model(tokenizer, codes=world.codec.size, features=SIZE, seed=recipe.seed, **shape)
                scratch = final.with_name(final.name + "-training")
                scratch.mkdir(parents=True, exist_ok=True)
                train(base_stage(scratch, recipe, world, model, tokenizer), watch("base") if watch else None, say)
                with publish_folder(final) as folder:
                    save_model(folder, model, tokenizer)
    return load_model(final)
