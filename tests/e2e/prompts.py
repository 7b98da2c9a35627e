"""Sixty-four varied prompts as token ids: short, long, chat, code, digits, many scripts."""

from octavo_protocol.tokenizer import Tokenizer

_TEXTS = [
    "Hello",
    "The capital of France is",
    "Once upon a time",
    "1, 1, 2, 3, 5, 8,",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, cols):\n",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "# Shopping list\n- apples\n- ",
    "Dear Sir or Madam,",
    "The three laws of motion are",
    "In 1969, humans first",
    "Water boils at 100 degrees Celsius, which is",
    "Zażółć gęślą jaźń",
    "Привет, как дела?",
    "今天天气很好，我们去",
    "日本の首都は",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "🙂🙃😉 emoji are",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag:",
    "naïve café résumé — “quotes” … and ‘more’",
    "x² + y² = r², therefore",
    "a\n\n\n\nb\n\n\n\nc",
    "    indented\n\ttabbed\n",
    '{"name": "octavo", "tags": ["llm", "kv"], "size":',
    "<html><body><h1>Title</h1><p>",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0123456789 " * 8,
    "Q: What is 12 + 30?\nA: 42\nQ: What is 7 + 8?\nA:",
    "Translate to French: good morning =",
    "List of planets: Mercury, Venus,",
]

_QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "Wie heißt die Hauptstadt von Österreich?",
    "请用中文介绍一下你自己。",
    "Give me three tips for better sleep.",
    "What does this do: print(sum(range(10)))?",
    "Tell me a joke about computers 🤖.",
    "Summarise the plot of Romeo and Juliet.",
    "How do I boil an egg?",
    "Name five colours.",
    "Why is the sky blue?",
]

_LONG = (
    "The paging scheme divides memory into blocks of a fixed size. A table maps each position of a "
    "sequence to the block that holds it, so that blocks need not be neighbours. When a sequence "
    "ends, its blocks return to the pool. Sequences that begin alike may share their first blocks. "
)


def varied_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    prompts = [tokenizer.encode(text) for text in _TEXTS]
    for question in _QUESTIONS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}])
        prompts.append(tokenizer.encode(text, add_special_tokens=False))
    for i, question in enumerate(_QUESTIONS[:8]):  # conversations that share a long system prompt
        messages = [
            {"role": "system", "content": _LONG * 2},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "Let me think."},
            {"role": "user", "content": "Go on. " * (i + 1)},
        ]
        text = tokenizer.apply_chat_template(messages)
        prompts.append(tokenizer.encode(text, add_special_tokens=False))
    for repeats in (1, 2, 3, 4, 5, 6, 8, 10, 12):  # long ones, some of them prefixes of others
        prompts.append(tokenizer.encode(_LONG * repeats))
    exact = tokenizer.encode(_LONG * 3)
    prompts += [exact[:length] for length in (64, 128, 129)]  # around block boundaries
    assert len(prompts) == 64, len(prompts)
    return prompts
