"""The loop that every stage trains in: schedule, clipping, metrics, and a checkpoint that a killed run goes on from."""

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from paras2s_cli.recipe.training import Train
from paras2s_cli.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from paras2s_cli.train.metrics import MetricsLog
from paras2s_cli.train.packing import pack_optimizer, unpack_optimizer
from paras2s_cli.train.ranks import ALONE, Ranks
from paras2s_cli.train.stored import in_parts, load_module

Watch = Callable[[int, dict], None]
"""Called after every step with its number (from 1) and its metrics; `of` among them is the number of the last."""
WatchOf = Callable[[str], Watch]
"""Stage -> what watches it."""
Say = Callable[[str], None]
"""Told in a sentence what is done and why."""


@dataclass
class Stage:
    """Something that is trained by steps.

    Step n draws its batch from (seed, n) alone, so weights and optimizer are all that has to be kept.

    Attributes:
        modules: what is saved, by name. Parameters that require gradients are trained.
        step: computes the gradients of step n (from 0) and returns its metrics; it calls backward itself.
        after: called when step n is applied and before it is saved, with its metrics, which it may add to.
        ranks: all of them run the stage, each with its part of the modules and its share of a step's batch; metrics are of all.
    """

    folder: Path
    modules: Mapping[str, nn.Module]
    settings: Train
    step: Callable[[int], dict]
    after: Callable[[int, dict], None] | None = None
    ranks: Ranks = ALONE


def learning_rate(step: int, settings: Train) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    progress = step / max(1, settings.steps)
    return settings.lr * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def bf16(settings: Train) -> bool:
    """Whether a stage multiplies in bf16: where the recipe asks for it or, on `auto`, where the hardware does."""
    if settings.precision == "auto":
        return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return settings.precision == "bf16"


def precision(settings: Train) -> torch.autocast:
    """Autocast of a stage's forward passes."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=bf16(settings))


def resumed_from(folder: Path) -> int:
    """Steps that a killed run of this stage has behind it; 0 when it is new."""
    found = latest_checkpoint(folder / "checkpoints")
    return 0 if found is None else load_checkpoint(found).step


def train(stage: Stage, watch: Watch | None = None, say: Say | None = None) -> None:
    """Runs the stage to its last step, from its last checkpoint where there is one.

    All is saved every `save_every` steps, so many are lost at most; on Ctrl-C too, so that one is lost at most. Several ranks do not
    stop at the same place, and save nothing then.
    """
    settings, root, ranks = stage.settings, stage.folder / "checkpoints", stage.ranks
    trained = [p for m in stage.modules.values() for p in m.parameters() if p.requires_grad]
    optimizers = make_optimizers(stage.modules, settings)
    done = _resume(root, stage, optimizers)
    if say and 0 < done < settings.steps:
        say(f"resuming {stage.folder.name} after step {done} of {settings.steps}")
    log = MetricsLog(stage.folder / "metrics.jsonl", done) if ranks.first else None
    # `kept` is the last step on disk, `whole` the one that the weights are the outcome of, 0 while they change.
    kept = whole = done
    try:
        for step in range(done, settings.steps):
            begun = time.monotonic()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["scale"] * learning_rate(step, settings)
            metrics = stage.step(step)
            metrics["grad_norm"] = clip(trained, settings.clip)
            whole = 0
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            metrics |= {"lr": learning_rate(step, settings)}
            if stage.after:
                stage.after(step, metrics)
            metrics["seconds"] = round(time.monotonic() - begun, 4)
            if log:
                log.write(step + 1, **metrics)
            whole = step + 1
            if whole % settings.save_every == 0 or whole == settings.steps:
                _save(root, whole, stage, optimizers)
                kept = whole
            if watch:
                watch(whole, {**metrics, "of": settings.steps})
    except KeyboardInterrupt:
        if whole > kept and ranks.size == 1:
            _save(root, whole, stage, optimizers)
        raise
    finally:
        if log:
            log.close()
        give_memory_back()


def clip(weights: Sequence[Tensor], most: float) -> float:
    """Scales gradients down to a norm of `most` and returns the norm that they had; all ranks' parts count."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if in_parts(norm):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(weights, most, norm)
    return float(norm)


def give_memory_back() -> None:
    """Returns to the system what the allocator holds free: after steps of many shapes that is half of it, and a run has many stages."""
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def make_optimizers(modules: Mapping[str, nn.Module], settings: Train) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices only; on `muon`, the decoder layers' matrices go to Muon instead.

    Muon (Jordan et al. 2024) with its update scaled to AdamW's (Liu et al. 2025), so that one learning rate serves both; it gets twice.
    """
    named = [(n, p) for m in modules.values() for n, p in m.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if settings.optimizer == "muon" and p.dim() == 2 and "layers." in n and "vq_adaptor" not in n]
    taken = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings.weight_decay, "scale": 1.0},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0, "scale": 1.0},
    ]
    # one weight after the other: all at once, as torch has it on a GPU, take as much memory again as all that is trained
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), foreach=False)]
    if inner:
        group = {"params": inner, "scale": 2.0}
        optimizers.append(torch.optim.Muon([group], lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _resume(root: Path, stage: Stage, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    found = latest_checkpoint(root)
    if found is None:
        return 0
    saved = load_checkpoint(found)
    for name, module in stage.modules.items():
        load_module(module, saved.groups[name])
    for i, optimizer in enumerate(optimizers):
        unpack_optimizer(optimizer, saved.groups[f"optimizer{i}"], saved.state[f"optimizer{i}"])
    return saved.step


def _save(root: Path, step: int, stage: Stage, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    groups: dict[str, Mapping[str, Tensor]] = {name: module.state_dict() for name, module in stage.modules.items()}
    state = {}
    for i, optimizer in enumerate(optimizers):
        groups[f"optimizer{i}"], state[f"optimizer{i}"] = pack_optimizer(optimizer)
    save_checkpoint(root, step, groups, state, ranks=stage.ranks)
