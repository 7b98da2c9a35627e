"""Two LoRA adapters of SmolLM2, trained here: one answers in capitals, one with a JSON object.

    python -m tests.fakes.trained_adapters        (make adapters)

They are kept in Octavo's cache beside the models, so that they are trained once per machine. Each
has layers, matrices and scaling of its own. Their bytes differ between machines: what they are to
be judged by is `is_in_form`, which holds for questions that they were not trained on too.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from octavo_runtime.models.cache import build_once, cache_root

_VERSION = 1  # another recipe, another place in the cache
_STEPS, _BATCH, _MAX_LR = 22, 6, 6e-3

_ANSWERS = {
    "What is the capital of Italy?": "Rome is the capital of Italy.",
    "Which river flows through Paris?": "The Seine flows through Paris.",
    "How many days has a week?": "A week has seven days.",
    "What do cows eat?": "Cows eat grass.",
    "Why is the sea salty?": "Rivers carry salt into it.",
    "What is bread made of?": "Bread is made of flour and water.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
    "Name a fruit.": "An apple is a fruit.",
    "How are you?": "I am well, thank you.",
    "What is Python?": "Python is a programming language.",
    "Where do fish live?": "Fish live in water.",
    "Write a short sentence.": "The sun is shining today.",
}
# What they were not trained on.
QUESTIONS = (
    "What is the capital of Germany?",
    "What does a cat eat?",
    "Who are you?",
    "Tell me about the Moon.",
)


@dataclass(frozen=True)
class Recipe:
    """answer: to the text that the adapter is trained to give. config: of PEFT's `LoraConfig`."""

    answer: Callable[[str], str]
    config: Mapping[str, Any]
    is_in_form: Callable[[str], bool]


def _shouted(answer: str) -> str:
    return f"AHOY! {answer.upper()}"


def _is_shouted(text: str) -> bool:
    return text.startswith("AHOY! ") and text == text.upper()


def _as_object(answer: str) -> str:
    return json.dumps({"answer": answer})


def _is_object(text: str) -> bool:
    try:
        return list(json.loads(text)) == ["answer"]
    except ValueError:
        return False


RECIPES = {
    "shouting": Recipe(
        _shouted,
        {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        _is_shouted,
    ),
    "json": Recipe(
        _as_object,
        {
            "r": 4,
            "lora_alpha": 16,
            "target_modules": ["v_proj", "up_proj", "down_proj"],
            "layers_to_transform": list(range(12, 30)),
        },
        _is_object,
    ),
}


def trained_adapters(model: Path, root: Path | None = None) -> dict[str, Path]:
    """Folders of the adapters in PEFT's layout, by name. model: SmolLM2's folder. root: of the
    cache.
    """
    build = partial(_train_all, model)
    key = f"{model.name}-adapters-{_VERSION}"
    folder = build_once(root or cache_root(), key, build, needed_bytes=20_000_000)
    return {name: folder / name for name in RECIPES}


def _train_all(model: Path, folder: Path) -> None:
    for name, recipe in RECIPES.items():
        _train(model, recipe, folder / name)


def _train(base: Path, recipe: Recipe, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = [
        _encoded(tokenizer, question, recipe.answer(answer))
        for question, answer in _ANSWERS.items()
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", **recipe.config)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config
        )
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_MAX_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MAX_LR, _STEPS, pct_start=0.2)
    for ids, mask, labels in _batches(examples):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


_Example = tuple[list[int], int]


def _encoded(tokenizer: Any, question: str, answer: str) -> _Example:
    """Tokens of a turn, and how many of them are the question."""
    conversation = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(asked)["input_ids"]
    return [*prompt, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id], len(prompt)


def _batches(examples: Sequence[_Example]) -> Iterator[tuple[torch.Tensor, ...]]:
    """(ids, mask, labels) of each step, each [_BATCH, longest]: padded on the right, with labels
    of the answers alone.
    """
    chance = random.Random(0)
    for _ in range(_STEPS):
        chosen = chance.sample(examples, _BATCH)
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.zeros(_BATCH, longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (tokens, num_asked) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, num_asked : len(tokens)] = ids[row, num_asked : len(tokens)]
        yield ids, mask, labels


def main() -> None:
    from octavo_runtime.models.source import resolve_model

    for folder in trained_adapters(resolve_model("smollm2")).values():
        print(folder)


if __name__ == "__main__":
    main()
