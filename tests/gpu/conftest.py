"""Tiny random models of both families, and engines on the GPU that count their graphs' replays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.tiny_model import VOCAB_SIZE, tiny_bundle, tiny_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.worker.gpu.step_graphs import StepGraphs

TOKENIZER = tiny_tokenizer()
PROMPT = [(7 * i) % 300 + 5 for i in range(45)]
NewEngine = Callable[..., LLMEngine]


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint, and Hugging Face's model of it."""

    folder: Path
    hugging_face: Any

    def logits(self, token_ids: list[int]) -> Tensor:
        """[len(token_ids), vocab_size] fp32: after each token."""
        with torch.inference_mode():
            return self.hugging_face(torch.tensor([token_ids])).logits[0].float()  # type: ignore[no-any-return]

    def check_greedy(self, prompt: list[int], output: list[int]) -> None:
        """Asserts that every token is the best one after those before it."""
        best = self.logits([*prompt, *output])[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert list(output) == best


def _make(folder: Path, model: Any) -> TinyModel:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        else:  # norms, which would else be ones
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_bundle().tokenizer_json)  # for grammars
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return TinyModel(folder, loaded)


@pytest.fixture(scope="session", params=["llama-64", "qwen3-128"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Named by family and head dimension."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 192,
        "intermediate_size": 224,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": TOKENIZER.eos_token_id,
        "tie_word_embeddings": False,
    }
    model: Any
    if request.param == "llama-64":
        model = LlamaForCausalLM(LlamaConfig(head_dim=64, **shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=128, **shape))
    return _make(tmp_path_factory.mktemp(request.param), model)


@dataclass
class Replays:
    count: int = 0


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Counts replays of graphs."""
    counted, replay = Replays(), StepGraphs.replay

    def count(graphs: StepGraphs, size: int) -> Tensor:
        counted.count += 1
        return replay(graphs, size)

    monkeypatch.setattr(StepGraphs, "replay", count)
    return counted


@pytest.fixture
def new_engine(tiny: TinyModel) -> Iterator[NewEngine]:
    """Makes engines of `tiny`, on the GPU and in fp32 where the options do not say otherwise."""
    engines: list[LLMEngine] = []

    def new(**options: Any) -> LLMEngine:
        defaults = {"num_gpu_blocks_override": 64, "max_model_len": 128, "max_num_seqs": 16}
        given = {"device": "cuda", "dtype": "float32"} | defaults | options
        engines.append(LLMEngine(EngineConfig(model=tiny.folder, **given), TOKENIZER))
        return engines[-1]

    yield new
    for engine in engines:
        engine.shutdown()
