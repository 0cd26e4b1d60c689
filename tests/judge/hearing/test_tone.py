"""Audio language models as the second stage, against the library's own forward on one utterance and one answer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing import tone
from paras2s_cli.judge.hearing.audio_lm import AudioLanguageModel, Question, answer_tokens
from paras2s_cli.judge.hearing.tone import AudioLMDescriber
from paras2s_cli.recipe.judging import AudioLM

TONES = ["happy", "sad", "very sad", "flat", "neutral"]
FAMILIES = ["qwen2_audio", "omni"]


def settings(folder: Path, **more: Any) -> AudioLM:
    return AudioLM(model=str(folder), query_tones=TONES, answer_tones=TONES[::-1], batch=3, **more)


class Slow:
    """The library's model and, where the family's has no need of images, its processor: no cache, no batch, no trick."""

    def __init__(self, family: str, folder: Path) -> None:
        import transformers

        self.family = family
        if family == "qwen2_audio":
            self.processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
            self.model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder)
        else:
            self.extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self.model = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder)

    def prompt(self, waves: list[np.ndarray], question: str) -> dict[str, torch.Tensor]:
        if self.family == "qwen2_audio":
            content = [{"type": "audio", "audio": ""} for _ in waves] + [{"type": "text", "text": question}]
            text = self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
            return self.processor(text=text, audio=waves, sampling_rate=16000, return_tensors="pt")
        found = self.extractor(waves, sampling_rate=16000, return_tensors="pt", return_attention_mask=True, padding="max_length")
        counts = [int(self.model.model.audio_tower._get_feat_extract_output_lengths(n)[1]) for n in found.attention_mask.sum(-1)]
        sounds = "".join(f"<|audio_bos|>{'<|AUDIO|>' * count}<|audio_eos|>" for count in counts)
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text = f"{system}<|im_start|>user\n{sounds}{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        return {"input_ids": ids, "input_features": found.input_features, "feature_attention_mask": found.attention_mask}

    @torch.no_grad()
    def ask(self, waves: list[np.ndarray], question: Question) -> list[float]:
        tokenizer = self.processor.tokenizer if self.family == "qwen2_audio" else self.tokenizer
        inputs, totals = dict(self.prompt(waves, question.text)), []
        before = inputs["input_ids"].shape[1]
        for answer in question.answers:
            tail = tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
            ids = torch.cat([inputs["input_ids"], tail], 1)
            logits = self.model(**(inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})).logits
            logprobs = logits[0, before - 1 : -1].log_softmax(-1)
            totals.append(logprobs.gather(1, tail[0][:, None]).sum())
        return torch.stack(totals).softmax(0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_the_library_says_one_by_one(family: str, checkpoints: dict[str, Path], waves: list[np.ndarray]) -> None:
    describer, slow = AudioLMDescriber(settings(checkpoints[family])), Slow(family, checkpoints[family])
    waves = [wave for wave in waves if 1600 < len(wave) < 32000]
    query, answer = describer.describe(waves, "query"), describer.describe(waves, "answer")
    for wave, asked, said in zip(waves, query, answer, strict=True):
        assert (list(asked.tones), list(said.tones), said.age, said.sex) == (TONES, TONES[::-1], {}, {})
        for text, found in ((tone.TONE, asked.tones), (tone.AGE, asked.age), (tone.SEX, asked.sex), (tone.TONE, said.tones)):
            wanted = slow.ask([wave], tone.question(text, list(found)))
            np.testing.assert_allclose(list(found.values()), wanted, atol=1e-4)
    spread = np.ptp([list(asked.tones.values()) for asked in query], axis=0)
    assert spread.max() > 0.01, "the checkpoint tells the waves apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_is_heard_alone(family: str, checkpoints: dict[str, Path], waves: list[np.ndarray]) -> None:
    describer = AudioLMDescriber(settings(checkpoints[family]))
    for wave, together in zip(waves, describer.describe(waves, "query"), strict=True):
        alone = describer.describe([wave], "query")[0]
        for name in (*TONES, "adult", "male"):
            assert alone.style(name) == pytest.approx(together.style(name), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_sounds_in_a_row(family: str, checkpoints: dict[str, Path], waves: list[np.ndarray]) -> None:
    short, middle, long = waves[0], waves[4], waves[1]
    question = Question("Which is happy?", ("first", "second"))
    model, slow = AudioLanguageModel(settings(checkpoints[family]), "tone"), Slow(family, checkpoints[family])
    rows = [[short, long], [long, short], [middle, middle]]
    found = model.ask(rows, {"x": question})["x"]
    for row, probabilities in zip(rows, found.tolist(), strict=True):
        np.testing.assert_allclose(probabilities, slow.ask(row, question), atol=1e-4)
    assert abs(float(found[0, 0] - found[1, 0])) > 1e-3, "the order of the sounds matters"


def test_no_answer_is_the_beginning_of_another(checkpoints: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoints["qwen2_audio"])
    plain = [tokenizer(word).input_ids for word in ("sad", "sad voice", "happy")]
    assert plain[1][: len(plain[0])] == plain[0]
    assert answer_tokens(tokenizer, ("sad", "sad voice", "happy")) == [[*plain[0], tokenizer.eos_token_id], *plain[1:]]


def test_an_adapter_is_heard(checkpoints: dict[str, Path], waves: list[np.ndarray], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    slow = Slow("qwen2_audio", checkpoints["qwen2_audio"])
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    slow.model = peft.get_peft_model(slow.model, lora)
    slow.model.save_pretrained(tmp_path / "adapter")
    with_it = AudioLMDescriber(settings(checkpoints["qwen2_audio"], adapter=str(tmp_path / "adapter")))
    without = AudioLMDescriber(settings(checkpoints["qwen2_audio"]))
    found = list(with_it.describe(waves[:1], "query")[0].tones.values())
    np.testing.assert_allclose(found, slow.ask([waves[0]], tone.question(tone.TONE, TONES)), atol=1e-4)
    assert np.abs(np.array(found) - list(without.describe(waves[:1], "query")[0].tones.values())).max() > 1e-3
    assert with_it.name != without.name
    with pytest.raises(UsageError, match=r"^tone.adapter: .* is no adapter"):
        AudioLMDescriber(settings(checkpoints["qwen2_audio"], adapter=str(checkpoints["whisper"])))
    # as it is named on a whole model of which this is a part: the library would leave it out and say nothing
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("base_model.model.", "base_model.model.thinker."): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(UsageError, match=r"^tone.adapter: .* does not fit this model: \d+ of its tensors have no place"):
        AudioLMDescriber(settings(checkpoints["qwen2_audio"], adapter=str(tmp_path / "adapter")))
    file.unlink()
    torch.save(tensors, file.with_name("adapter_model.bin"))
    with pytest.raises(UsageError, match=r"adapter_model.bin is a pickle, .*`paras2s convert .*adapter_model.safetensors`"):
        AudioLMDescriber(settings(checkpoints["qwen2_audio"], adapter=str(tmp_path / "adapter")))


def test_other_models_and_other_lists_have_other_names(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["qwen2_audio"]
    lists = [["sad", "happy"], ["happy", "sad"]]
    names = {AudioLMDescriber(AudioLM(model=str(folder), query_tones=some)).name for some in lists}
    assert len(names) == 2 and all(name.startswith("audio-lm qwen2_audio@") for name in names)
    assert AudioLMDescriber(AudioLM(model=str(folder), revision="mine")).name.startswith("audio-lm qwen2_audio@mine float32 ")
    halves = AudioLMDescriber(AudioLM(model=str(folder), revision="mine", dtype="bfloat16"))
    assert halves.name.startswith("audio-lm qwen2_audio@mine bfloat16 "), "what is heard in bf16 is not taken for what is heard in fp32"
    with pytest.raises(UsageError, match="is a model of type 'whisper'"):
        AudioLMDescriber(AudioLM(model=str(checkpoints["whisper"])))


@pytest.mark.parametrize("tones", [["sad"], ["sad", "sad"], ["sad", "very very sad"], ["sad", ""]])
def test_tones_are_one_or_two_words(tones: list[str]) -> None:
    with pytest.raises(ValueError, match=r"one or two words|at least 2"):
        AudioLM(model="x", answer_tones=tones)
