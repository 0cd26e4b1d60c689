"""The library's own forward on the whole prompt about a query and an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paras2s_cli.judge.hearing.pair import PAIR


class Slow:
    """One pair at a time, its prompt made by the folder's own template. adapter: merged by peft."""

    def __init__(self, family: str, folder: Path, adapter: Path | None = None) -> None:
        import transformers
        from peft import PeftModel

        self.family, self.folder = family, folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        kind = "Qwen2AudioForConditionalGeneration" if family == "qwen2_audio" else "Qwen2_5OmniThinkerForConditionalGeneration"
        model: Any = getattr(transformers, kind).from_pretrained(folder)
        self.model = (PeftModel.from_pretrained(model, str(adapter)).merge_and_unload() if adapter else model).eval()

    def prompt(self, waves: list[np.ndarray]) -> dict[str, torch.Tensor]:
        asked = {"role": "user", "content": [*[{"type": "audio", "audio": ""}] * 2, {"type": "text", "text": PAIR.text}]}
        if self.family == "qwen2_audio":
            import transformers

            processor = transformers.Qwen2AudioProcessor.from_pretrained(self.folder)
            text = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
            return dict(processor(text=text, audio=waves, sampling_rate=16000, return_tensors="pt"))
        heard = self.extractor(waves, sampling_rate=16000, return_tensors="pt", return_attention_mask=True, padding="max_length")
        template = json.loads((self.folder / "chat_template.json").read_text())["chat_template"]
        said = [{"role": "system", "content": "You are a helpful assistant."}, asked]
        parts = self.tokenizer.apply_chat_template(said, chat_template=template, add_generation_prompt=True, tokenize=False)
        before, between, after = parts.split("<|AUDIO|>")
        first, second = ("<|AUDIO|>" * (((frames - 1) // 2 - 1) // 2 + 1) for frames in heard["attention_mask"].sum(1).tolist())
        ids = self.tokenizer(before + first + between + second + after, return_tensors="pt").input_ids
        features = {"input_features": heard["input_features"], "feature_attention_mask": heard["attention_mask"]}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **features}

    @torch.no_grad()
    def digits(self, asked: np.ndarray, said: np.ndarray) -> tuple[list[float], float]:
        """Probabilities of the five digits among themselves, and of all five among all tokens."""
        logits = self.model(**self.prompt([asked, said])).logits[0, -1].double()
        rows = [self.tokenizer.convert_tokens_to_ids(digit) for digit in "12345"]
        return logits[rows].softmax(0).tolist(), float(logits.softmax(0)[rows].sum())
