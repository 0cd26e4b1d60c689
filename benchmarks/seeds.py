"""The pocket result over seeds, beside its control arms, on one bench.

    python benchmarks/seeds.py --out runs/seeds --seeds 1 2 3 [section.key=value ...]

For every seed: `paras2s align`, then two arms that use the same warm model and as many forward and backward passes as GRPO:
`continued` (SFT goes on) and `best_of_8` (SFT on the best of 8 sampled answers by the same reward model). All systems are measured greedily
and at T = 1 on the held-out split; intervals are clustered by sentence over seeds. Interrupted, the same command goes on.
"""

import argparse
import json
from pathlib import Path

import torch

from paras2s_cli.bench.run import _line, scored
from paras2s_cli.bench.stats import Scored, summarise
from paras2s_cli.bench.systems import answers_of, model_answers
from paras2s_cli.bench.table import print_table
from paras2s_cli.data.atomic import write_text
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.load import dump_recipe, load_recipe, recipe_hash
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.align import Run, prepare, reward_model, warm_model
from paras2s_cli.train.demonstrations import Demonstration
from paras2s_cli.train.distill import answer_queries, codes_of_all, hear_queries
from paras2s_cli.train.loop import train
from paras2s_cli.train.run_folder import open_run
from paras2s_cli.train.sft import sft_stage
from paras2s_cli.train.whole import align_and_measure, loader
from paras2s_cli.verbs.progress import Show

ARMS = ("continued", "best_of_8")
GROUP = 8


def best_of(run: Run, warm: SpeechLM, tokenizer: TextTokenizer) -> list[Demonstration]:
    """The best of GROUP sampled answers to each training query that GRPO's budget covers, by the reward model."""
    reward = reward_model(run, warm, tokenizer)
    queries = run.world.queries("train")
    count = min(len(queries), run.recipe.grpo.train.steps * run.recipe.grpo.prompts)
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(run.recipe.seed)).tolist()[:count]
    asked = [queries[i] for i in order]
    rolled = answer_queries(warm, asked, sampling=Sampling(run.recipe.grpo.temperature), seed=run.recipe.seed + 99, group=GROUP)
    codes = codes_of_all(warm, rolled)
    texts = torch.cat([r.answers.text for r in rolled])
    found = []
    for i, query in enumerate(asked):
        mine = slice(i * GROUP, (i + 1) * GROUP)
        best = i * GROUP + int(reward.rewards([query], codes[mine], texts[mine], GROUP).argmax())
        if len(codes[best]):
            row = {"id": f"sampled.{i}", "text": tokenizer.decode(texts[best].tolist())}
            found.append(Demonstration(query, Spoken(row, query.path, query.features, codes[best])))
    return found


def arm(run: Run, name: str) -> tuple[SpeechLM, TextTokenizer]:
    """The model of a control arm, trained if it is missing."""
    folder = run.out / name / "model"
    if not is_complete(folder):
        warm, tokenizer = warm_model(run)
        rows = None if name == "continued" else best_of(run, warm.eval(), tokenizer)
        recipe = run.recipe.sft.model_copy(update={"seed": run.recipe.seed + (1000 if name == "continued" else 0)})
        passes = run.recipe.grpo.train.steps * run.recipe.grpo.prompts * run.recipe.grpo.group
        steps = passes // recipe.train.batch
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps}), "seed": run.recipe.seed})
        run.say(f"control arm {name}: {steps} steps of {recipe.train.batch}")
        (run.out / name).mkdir(exist_ok=True)
        stage, best = sft_stage(run.out / name, recipe, run.world, warm, tokenizer, rows)
        train(stage, run.watch(name), run.say)
        best.restore(warm)
        with publish_folder(folder) as temporary:
            save_model(temporary, warm, tokenizer)
    return load_model(folder)


def measured(run: Run) -> list[Scored]:
    """Every system of one seed, greedily and at T = 1."""
    queries = run.world.queries(run.recipe.bench.split)
    answers_folder = run.out / "answers"
    answers_folder.mkdir(exist_ok=True)
    rows: list[Scored] = []
    load, asked = loader(run), hear_queries(run.judge, queries)
    for name in ("base", "sft", "aligned", *ARMS, "cascade", "topline"):
        for mode, temperature in (("greedy", 0.0), ("T=1", 1.0)):
            if name in ("cascade", "topline"):
                if mode == "T=1":
                    continue
                answers = answers_of(name, run.world, queries, asked, 0.0, run.recipe.seed, load, run.recipe.bench.answer_limit)
            else:
                loaded = arm(run, name) if name in ARMS else load(name)
                assert isinstance(loaded, tuple), "the pocket world's models are speech LMs of ours"
                model, tokenizer = loaded
                answers = model_answers(model, tokenizer, run.world, queries, temperature, run.recipe.seed)
            run.say(f"seed {run.recipe.seed}: {name} {mode}")
            shown = "reference" if name in ("cascade", "topline") else mode
            rows += scored(name, shown, answers, asked, run.judge, run.world, run.recipe.seed, answers_folder)
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    show, rows = Show(), []
    for seed in given.seeds:
        recipe = load_recipe("pocket", [f"seed={seed}", *given.overrides], AlignRecipe)
        opened = open_run(given.out / f"seed-{seed}", dump_recipe(recipe), recipe_hash(recipe), "align")
        align_and_measure(recipe, opened.path, show.say, show.watch, measure=False)
        rows += measured(prepare(recipe, opened.path, show.say, show.watch))
        write_text(given.out / "rows.jsonl", "".join(json.dumps(_line(row)) + "\n" for row in rows))
    pairs = [("aligned", "sft"), ("aligned", "continued"), ("aligned", "best_of_8"), ("sft", "base")]
    print_table(summarise(rows, compare=pairs, draws=2000, seed=1))


if __name__ == "__main__":
    main()
