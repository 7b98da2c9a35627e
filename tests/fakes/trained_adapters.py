"""Two LoRA adapters of SmolLM2, trained here: one answers in capitals, one with a JSON object.

    python -m tests.fakes.trained_adapters        (make adapters)

They are kept in Octavo's cache beside the models, so that they are trained once per machine. Each
has layers, matrices and scaling of its own. Their bytes differ between machines: what they are to
be judged by is `is_in_form`, which holds for questions that they were not trained on too.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from octavo_runtime.models.cache import build_once, cache_root

FIRST_LAYER = 20  # of 30; those before stay as they are
_VERSION = 1  # another recipe, another place in the cache
_STEPS, _BATCH, _MAX_LR = 14, 6, 8e-3

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
    """answer: to the text that the adapter is trained to give. config: of PEFT's `LoraConfig`.
    begin: of all its answers.
    """

    answer: Callable[[str], str]
    config: Mapping[str, Any]
    begin: str

    def is_in_form(self, text: str) -> bool:
        return text.startswith(self.begin)


def _shouted(answer: str) -> str:
    return f"AHOY! {answer.upper()}"


def _as_object(answer: str) -> str:
    return json.dumps({"answer": answer})


RECIPES = {
    "shouting": Recipe(
        _shouted,
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
            "layers_to_transform": list(range(FIRST_LAYER, 30)),
        },
        "AHOY! ",
    ),
    "json": Recipe(
        _as_object,
        {
            "r": 4,
            "lora_alpha": 16,
            "target_modules": ["v_proj", "up_proj", "down_proj"],
            "layers_to_transform": list(range(FIRST_LAYER + 2, 30)),
        },
        '{"answer": "',
    ),
}


def trained_adapters(model: Path) -> dict[str, Path]:
    """Folders of the adapters in PEFT's layout, by name; trained unless they are kept. model:
    SmolLM2's folder.
    """
    build = partial(_train_all, model)
    folder = build_once(cache_root(), _key(model), build, needed_bytes=20_000_000)
    return {name: folder / name for name in RECIPES}


def kept_adapters(model: Path) -> dict[str, Path]:
    """As `trained_adapters`, which have been trained before; else none."""
    is_kept = (cache_root() / "models" / _key(model)).is_dir()
    return trained_adapters(model) if is_kept else {}


def _key(model: Path) -> str:
    return f"{model.name}-adapters-{_VERSION}"


def _train_all(model: Path, folder: Path) -> None:
    """In one thread: on a busy machine, teams of threads wait for each other for minutes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, recipe in RECIPES.items():
            _train(model, recipe, folder / name)
    finally:
        torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class _Examples:
    """Turns of a chat. hidden: what goes into layer `FIRST_LAYER`, [number, longest, hidden_size],
    mask: where they have tokens, [number, longest]. targets: the token after each, [number,
    longest]; -100 where that is none of the answer.
    """

    hidden: Tensor
    mask: Tensor
    targets: Tensor

    def batches(self) -> Iterator["_Examples"]:
        chance = random.Random(0)
        for _ in range(_STEPS):
            rows = chance.sample(range(len(self.mask)), _BATCH)
            yield _Examples(self.hidden[rows], self.mask[rows], self.targets[rows])


def _train(base: Path, recipe: Recipe, folder: Path) -> None:
    """Only the layers with matrices of the adapter are computed in each step."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    examples = _examples(model, AutoTokenizer.from_pretrained(base), recipe.answer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe.config))
    body, layers = model.model, model.model.layers
    body.layers = layers[FIRST_LAYER:]
    parameters = [each for each in adapted.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_MAX_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MAX_LR, _STEPS, pct_start=0.2)
    for batch in examples.batches():
        states = body(inputs_embeds=batch.hidden, attention_mask=batch.mask, use_cache=False)
        is_asked = batch.targets >= 0
        logits = model.lm_head(states.last_hidden_state[is_asked])
        loss = cross_entropy(logits.float(), batch.targets[is_asked])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    body.layers = layers
    adapted.save_pretrained(folder)


@torch.no_grad()
def _examples(model: Any, tokenizer: Any, answer: Callable[[str], str]) -> _Examples:
    ids, targets = [], []
    for question, fact in _ANSWERS.items():
        chat = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(asked)["input_ids"]
        answered = [*tokenizer(answer(fact))["input_ids"], tokenizer.eos_token_id]
        ids.append(torch.tensor(prompt + answered))
        targets.append(torch.tensor([-100] * (len(prompt) - 1) + answered + [-100]))
    mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    states = model.model(
        pad_sequence(ids, batch_first=True), attention_mask=mask, output_hidden_states=True
    )
    padded = pad_sequence(targets, batch_first=True, padding_value=-100)
    return _Examples(states.hidden_states[FIRST_LAYER], mask, padded)


def main() -> None:
    from octavo_runtime.models.source import resolve_model

    for folder in trained_adapters(resolve_model("smollm2")).values():
        print(folder)


if __name__ == "__main__":
    main()
