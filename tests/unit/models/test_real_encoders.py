"""Real models on real texts: sentence-transformers' vectors and rankings, transformers' scores.

Texts are the headings of this repository's documentation and what stands under them.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.pooling_engine import PoolingEngine

pytestmark = pytest.mark.model

Matrix = NDArray[np.float32]
DOCS = Path(__file__).parents[3] / "docs"
NUM_SECTIONS = 48
# As one step, and as many small ones.
BATCHES: list[dict[str, Any]] = [{}, {"max_num_batched_tokens": 512, "max_num_seqs": 7}]


def sections() -> list[tuple[str, str]]:
    """(heading, text under it)."""
    found = []
    for path in sorted(DOCS.glob("*.md")):
        for section in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            heading, _, text = section.partition("\n")
            found.append((heading, text.strip()))
    # Of all lengths, the longest being what the embedder takes.
    return [
        (heading, text[: 60 + 97 * index % 1200])
        for index, (heading, text) in enumerate(found[:NUM_SECTIONS])
    ]


def pooled(
    folder: Path,
    prompts: list[list[int]],
    types: list[list[int]] | None = None,
    **settings: Any,
) -> list[Matrix]:
    engine = PoolingEngine(EngineConfig(model=folder, dtype="float32", **settings))
    for index, prompt in enumerate(prompts):
        part = [] if types is None else types[index]
        engine.add_request(str(index), prompt, PoolingParams(), token_type_ids=part)
    results: dict[str, Matrix] = {}
    while engine.has_unfinished_requests():
        results |= {output.request_id: output.outputs.data for output in engine.step()}
    engine.shutdown()
    return [results[str(index)] for index in range(len(prompts))]


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu")


def ndcg_at_10(queries: Matrix, documents: Matrix) -> list[float]:
    """Of each query, whose one relevant document has its own number. Järvelin, Kekäläinen 2002."""
    best = np.argsort(-(queries @ documents.T), axis=1)[:, :10].tolist()
    return [
        1 / math.log2(2 + row.index(index)) if index in row else 0.0
        for index, row in enumerate(best)
    ]


@pytest.mark.parametrize("settings", BATCHES, ids=["one-step", "small-steps"])
def test_embeddings_and_rankings_equal_sentence_transformers(
    minilm: Path, embedder: Any, settings: dict[str, Any]
) -> None:
    headings, texts = (list(each) for each in zip(*sections(), strict=True))
    expected = embedder.encode(headings + texts)
    prompts = embedder.tokenizer(
        headings + texts, truncation=True, max_length=embedder.max_seq_length
    )["input_ids"]

    vectors = np.stack(pooled(minilm, prompts, **settings))

    assert (vectors * expected).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    ours = ndcg_at_10(vectors[: len(texts)], vectors[len(texts) :])
    theirs = ndcg_at_10(expected[: len(texts)], expected[len(texts) :])
    assert ours == theirs
    assert float(np.mean(ours)) > 0.4


@torch.inference_mode()
def test_scores_of_pairs_equal_transformers(ms_marco: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(ms_marco).eval()
    tokenizer = AutoTokenizer.from_pretrained(ms_marco)
    pairs = [(heading, text) for heading, _ in sections()[:3] for _, text in sections()[:4]]
    encoded = [
        tokenizer(*pair, truncation=True, max_length=256, return_tensors="pt") for pair in pairs
    ]
    expected = [model(**each).logits.item() for each in encoded]

    scores = pooled(
        ms_marco,
        [each["input_ids"][0].tolist() for each in encoded],
        [each["token_type_ids"][0].tolist() for each in encoded],
    )

    np.testing.assert_allclose([score.item() for score in scores], expected, atol=1e-4)
    assert np.ptp(expected) > 1
