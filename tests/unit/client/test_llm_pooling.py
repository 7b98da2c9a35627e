"""`LLM` and `AsyncLLMEngine` with models that pool: vLLM's calls, transformers' numbers."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tests.unit.models.encoder_checkpoints import write_checkpoint
from tokenizers import models, pre_tokenizers, processors

from octavo import (
    LLM,
    AsyncEngineArgs,
    AsyncLLMEngine,
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    LLMEngine,
    PoolingParams,
    PoolingRequestOutput,
    SamplingParams,
    ScoringRequestOutput,
)
from octavo.lora.request import LoRARequest
from octavo_protocol.errors import UnavailableError, ValidationError
from octavo_protocol.pooling import PoolingOutput

WORDS = ["red", "green", "blue", "cat", "dog", "sun", "moon", "sea", "tree", "stone"]
TEXTS = ["red cat", "the sun", "moon", "green dog blue sea tree stone " * 3]
CLS, SEP = 2, 3
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def write_tokenizer(folder: Path) -> None:
    """Words, with BERT's frame around texts and pairs."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "query", "document", "the"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    def build(architecture: str, **config: Any) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(architecture)
        model = write_checkpoint(folder, architecture, **config)
        write_tokenizer(folder)
        return folder, model

    return build


@pytest.fixture(scope="module")
def bert(build: Callable[..., tuple[Path, Any]]) -> tuple[Path, Any]:
    return build("BertModel")


@pytest.fixture(scope="module")
def embedder(bert: tuple[Path, Any]) -> Iterator[LLM]:
    with LLM(str(bert[0]), dtype="float32", pooler_config={"pooling_type": "MEAN"}) as llm:
        yield llm


@pytest.fixture(scope="module")
def reranker(build: Callable[..., tuple[Path, Any]]) -> Iterator[tuple[LLM, Any]]:
    folder, model = build("BertForSequenceClassification", num_labels=1)
    with LLM(str(folder), dtype="float32") as llm:
        yield llm, model


@pytest.fixture(scope="module")
def classifier(build: Callable[..., tuple[Path, Any]]) -> Iterator[tuple[LLM, Any]]:
    folder, model = build("BertForSequenceClassification", num_labels=3)
    with LLM(str(folder), dtype="float32") as llm:
        yield llm, model


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("embedder", "reranker", "classifier"):
        if name in request.fixturenames:
            found = request.getfixturevalue(name)
            llm = found if isinstance(found, LLM) else found[0]
            assert not llm.llm_engine.has_unfinished_requests()


def ids(text: str) -> list[int]:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "query", "document", "the"]
    return [CLS, *(names.index(word) for word in text.split()), SEP]


@torch.no_grad()
def states(model: Any, token_ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([token_ids])).last_hidden_state[0]  # type: ignore[no-any-return]


def mean_vector(model: Any, text: str) -> Any:
    return torch.nn.functional.normalize(states(model, ids(text)).mean(0), dim=0).numpy()


# -- vectors --------------------------------------------------------------------------------------


def test_embed_gives_a_vector_per_text(embedder: LLM, bert: tuple[Path, Any]) -> None:
    results = embedder.embed(TEXTS, use_tqdm=False)

    assert [type(each) for each in results] == [EmbeddingRequestOutput] * len(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        assert result.finished
        assert result.prompt_token_ids == ids(text)
        expected = mean_vector(bert[1], text)
        np.testing.assert_allclose(result.outputs.embedding, expected, atol=1e-5)


def test_every_prompt_form_is_embedded_alike(embedder: LLM) -> None:
    text = TEXTS[0]
    forms: list[Any] = [text, ids(text), {"prompt": text}, {"prompt_token_ids": ids(text)}]

    vectors = [each.outputs.data.numpy() for each in encode(embedder, forms)]

    for vector in vectors:
        np.testing.assert_allclose(vector, vectors[0], atol=1e-6)


def encode(llm: LLM, prompts: Any, params: Any = None, task: str | None = "embed") -> Any:
    return llm.encode(prompts, params, pooling_task=task, use_tqdm=False)


def test_encode_gives_tensors_by_task(embedder: LLM, bert: tuple[Path, Any]) -> None:
    [vector] = encode(embedder, TEXTS[0])
    [rows] = encode(embedder, TEXTS[0], PoolingParams(task="token_embed"), None)
    [raw] = encode(embedder, TEXTS[0], PoolingParams(use_activation=False), "token_embed")

    assert isinstance(vector, PoolingRequestOutput)
    assert isinstance(vector.outputs, PoolingOutput)
    assert vector.outputs.data.shape == (64,)
    assert rows.outputs.data.shape == (4, 64)
    expected = states(bert[1], ids(TEXTS[0]))
    torch.testing.assert_close(raw.outputs.data, expected, atol=1e-5, rtol=0)


def test_parameters_may_differ_by_prompt(embedder: LLM) -> None:
    params = [PoolingParams(), PoolingParams(use_activation=False)]

    normal, raw = (each.outputs.data for each in encode(embedder, TEXTS[:2], params))

    assert normal.norm().item() == pytest.approx(1, abs=1e-5)
    assert raw.norm().item() != pytest.approx(1, abs=1e-2)


def test_truncation_keeps_the_frame_of_special_tokens(embedder: LLM) -> None:
    text = TEXTS[0] + " sun moon"

    def kept(**options: Any) -> list[int]:
        [result] = embedder.embed(text, tokenization_kwargs=options, use_tqdm=False)
        return list(result.prompt_token_ids)

    assert kept(truncate_prompt_tokens=4) == ids("red cat")
    assert kept(truncate_prompt_tokens=4, truncation_side="left") == ids("sun moon")
    assert kept(truncate_prompt_tokens=-1) == ids(text)
    [longest] = embedder.embed(
        "sun " * 100, tokenization_kwargs={"truncate_prompt_tokens": -1}, use_tqdm=False
    )
    assert longest.prompt_token_ids == ids("sun " * 62)


def test_a_progress_bar_counts_prompts(embedder: LLM) -> None:
    counted: dict[str, int] = {}

    class Bar:
        postfix = ""

        def __init__(self, total: int, desc: str, **_: Any) -> None:
            self.format_dict = {"elapsed": 1.0}
            self.desc = desc
            counted[desc] = 0

        def update(self, count: int) -> None:
            counted[self.desc] += count

        def close(self) -> None:
            pass

    embedder.embed(TEXTS, use_tqdm=Bar)

    assert counted == {"Rendering prompts": 4, "Processed prompts": 4}


def test_thousands_of_texts_keep_their_order(embedder: LLM) -> None:
    texts = [WORDS[i % 10] for i in range(3000)]

    results = embedder.embed(texts, use_tqdm=False)

    first = [each.outputs.embedding for each in results[:10]]
    for index, result in enumerate(results):
        np.testing.assert_allclose(result.outputs.embedding, first[index % 10], atol=1e-5)


# -- classes and scores ---------------------------------------------------------------------------


def test_classify_gives_the_probability_of_every_class(classifier: tuple[LLM, Any]) -> None:
    llm, model = classifier

    results = llm.classify(TEXTS, use_tqdm=False)

    for text, result in zip(TEXTS, results, strict=True):
        assert isinstance(result, ClassificationRequestOutput)
        assert result.outputs.num_classes == 3
        with torch.no_grad():
            expected = model(torch.tensor([ids(text)])).logits[0].softmax(-1)
        np.testing.assert_allclose(result.outputs.probs, expected.numpy(), atol=1e-5)


def pair_logit(model: Any, query: str, document: str) -> float:
    first, second = ids(query), ids(document)[1:]
    types = [0] * len(first) + [1] * len(second)
    with torch.no_grad():
        output = model(torch.tensor([first + second]), token_type_ids=torch.tensor([types]))
    return float(output.logits[0, 0])


def test_a_cross_encoder_reads_pairs(reranker: tuple[LLM, Any]) -> None:
    llm, model = reranker

    def scores(*data: Any) -> list[float]:
        results = llm.score(*data, use_tqdm=False)
        assert all(isinstance(each, ScoringRequestOutput) for each in results)
        return [each.outputs.score for each in results]

    def expected(*pairs: tuple[str, str]) -> list[float]:
        logits = [pair_logit(model, *pair) for pair in pairs]
        return [1 / (1 + np.exp(-logit)) for logit in logits]

    a, b, c = TEXTS[0], TEXTS[1], TEXTS[2]
    assert scores(a, b) == pytest.approx(expected((a, b)), abs=1e-5)
    assert scores(a, [b, c]) == pytest.approx(expected((a, b), (a, c)), abs=1e-5)
    assert scores([a, b], [b, c]) == pytest.approx(expected((a, b), (b, c)), abs=1e-5)
    assert scores({"prompt": a}, {"content": [{"type": "text", "text": b}]}) == pytest.approx(
        expected((a, b)), abs=1e-5
    )
    [raw] = llm.score(a, b, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    assert raw.outputs.score == pytest.approx(pair_logit(model, a, b), abs=1e-5)


def test_a_template_may_join_the_pair(reranker: tuple[LLM, Any]) -> None:
    llm, model = reranker

    [result] = llm.score("cat", "dog", chat_template=TEMPLATE, use_tqdm=False)

    token_ids = ids("query cat document dog")[1:-1]
    assert result.prompt_token_ids == token_ids
    with torch.no_grad():
        logit = float(model(torch.tensor([token_ids])).logits[0, 0])
    assert result.outputs.score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_the_models_own_template_joins_the_pair_if_it_is_one(
    build: Callable[..., tuple[Path, Any]],
) -> None:
    folder, _ = build("BertForSequenceClassification", num_labels=1)
    of_pairs = "{{ (messages | selectattr('role', 'equalto', 'query') | first).content }} red "
    of_pairs += "{{ (messages | selectattr('role', 'equalto', 'document') | first).content }}"
    joined = ids("cat") + ids("dog")[1:]
    for template, expected in ((of_pairs, ids("cat red dog")[1:-1]), (TEMPLATE, joined)):
        (folder / "chat_template.jinja").write_text(template)
        with LLM(str(folder), dtype="float32") as llm:
            [result] = llm.score("cat", "dog", use_tqdm=False)
        assert result.prompt_token_ids == expected


def test_a_long_pair_is_cut_where_it_is_longer(reranker: tuple[LLM, Any]) -> None:
    llm, _ = reranker

    [result] = llm.score(
        "cat",
        "sun moon sea",
        tokenization_kwargs={"truncate_prompt_tokens": 6},
        use_tqdm=False,
    )

    assert result.prompt_token_ids == ids("cat") + ids("sun moon")[1:]


def test_an_embedder_scores_by_cosine(embedder: LLM, bert: tuple[Path, Any]) -> None:
    results = embedder.score(TEXTS[0], TEXTS[1:], use_tqdm=False)

    query = mean_vector(bert[1], TEXTS[0])
    expected = [float(query @ mean_vector(bert[1], text)) for text in TEXTS[1:]]
    assert [each.outputs.score for each in results] == pytest.approx(expected, abs=1e-5)
    assert results[0].prompt_token_ids == ids(TEXTS[0]) + ids(TEXTS[1])


def test_a_model_of_token_vectors_scores_by_late_interaction(bert: tuple[Path, Any]) -> None:
    folder, model = bert
    with LLM(str(folder), dtype="float32", pooler_config={"task": "token_embed"}) as llm:
        assert (llm.supported_tasks, llm.pooling_task) == (("token_embed",), "token_embed")
        [result] = llm.score(TEXTS[0], TEXTS[1], use_tqdm=False)
        [rows] = llm.embed(TEXTS[0], use_tqdm=False)

    first, second = (
        torch.nn.functional.normalize(states(model, ids(text)), dim=-1) for text in TEXTS[:2]
    )
    expected = float((first @ second.T).max(1).values.sum())
    assert result.outputs.score == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(rows.outputs.data, first, atol=1e-5, rtol=0)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate("red"), r"this model pools \(embed, token_embed\) and does not"),
        (lambda llm: llm.chat([{"role": "user", "content": "red"}]), "does not generate: use emb"),
        (lambda llm: llm.classify("red"), "LLM.classify needs a classifier; this model's tasks"),
        (lambda llm: llm.encode("red"), "encode needs pooling_task: this model has embed, tok"),
        (lambda llm: llm.encode("red", pooling_task="score"), "not one any more: use LLM.score"),
        (lambda llm: llm.encode("red", pooling_task="reward"), "use classify or token_classify"),
        (lambda llm: llm.encode("red", pooling_task="plan"), "pooling_task must be one of embed"),
        (lambda llm: llm.encode("red", pooling_task="classify"), "this model cannot classify"),
        (lambda llm: llm.embed([]), "prompts must not be empty"),
        (lambda llm: llm.score([], "red"), "data_1 must not be empty"),
        (lambda llm: llm.score(["red", "sun"], ["sea"]), "2 texts cannot be scored against 1"),
        (lambda llm: llm.embed(["sun", "sea " * 70]), "the prompt has 72 tokens; this model take"),
        (lambda llm: llm.embed("red", pooling_params=[]), "0 pooling_params for 1 prompts"),
        (
            lambda llm: llm.embed("red", lora_request=LoRARequest("a", 1, "/a")),
            "takes no LoRA adapters",
        ),
        (lambda llm: llm.embed("\ud800"), "not valid Unicode"),
        (lambda llm: llm.score("red", "sun", chat_template=TEMPLATE), "chat_template is for mod"),
    ],
)
def test_a_call_that_cannot_be_says_what_to_do(
    embedder: LLM, call: Callable[[LLM], Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        call(embedder)


def test_what_is_of_another_kind_is_a_type_error(embedder: LLM, reranker: tuple[LLM, Any]) -> None:
    wrong: Any = {"task": "embed"}
    with pytest.raises(TypeError, match="expected PoolingParams, got dict"):
        embedder.embed("red", pooling_params=wrong)
    with pytest.raises(TypeError, match="data_1 must be texts"):
        reranker[0].score([[5, 6]], ["sun"])
    with pytest.raises(TypeError, match="prompts must be a string, token ids"):
        embedder.embed(3)


def test_a_classifier_of_several_classes_scores_no_pairs(classifier: tuple[LLM, Any]) -> None:
    with pytest.raises(ValidationError, match="cannot score pairs: it has 3 classes"):
        classifier[0].score("red", "sun")
    with pytest.raises(ValidationError, match="needs an embedder"):
        classifier[0].embed("red")


def test_a_prompt_that_is_refused_leaves_none_queued(embedder: LLM) -> None:
    with pytest.raises(ValidationError, match="outside the vocabulary"):
        embedder.embed([[5], [6], [5000]], use_tqdm=False)

    assert embedder.llm_engine.get_num_unfinished_requests() == 0


# -- engines --------------------------------------------------------------------------------------


def test_an_engine_is_stepped_by_hand(embedder: LLM) -> None:
    engine: LLMEngine = embedder.llm_engine
    engine.add_request("a", TEXTS[0], PoolingParams())
    with pytest.raises(ValidationError, match="does not generate"):
        engine.add_request("b", TEXTS[0], SamplingParams())

    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()

    assert [output.request_id for output in outputs] == ["a"]
    assert engine.model_config.runner_type == "pooling"
    names: dict[str, Any] = {
        each.name: getattr(each, "value", None) for each in embedder.get_metrics()
    }
    assert names["vllm:num_requests_running"] == 0
    assert names["vllm:prompt_tokens"] > 0


async def test_an_asynchronous_engine_pools(bert: tuple[Path, Any]) -> None:
    folder, model = bert
    arguments = AsyncEngineArgs(
        str(folder), dtype="float32", pooler_config={"pooling_type": "MEAN"}
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)

    async def embed(text: str, request_id: str) -> Any:
        outputs = [each async for each in engine.encode(text, PoolingParams(), request_id)]
        assert len(outputs) == 1
        return outputs[0]

    try:
        results = await asyncio.gather(*(embed(text, str(i)) for i, text in enumerate(TEXTS)))
        for text, result in zip(TEXTS, results, strict=True):
            expected = torch.from_numpy(mean_vector(model, text))
            torch.testing.assert_close(result.outputs.data, expected, atol=1e-5, rtol=0)
        with pytest.raises(ValidationError, match="does not generate: use embed"):
            await anext(engine.generate("red", SamplingParams(), "g"))
        with pytest.raises(ValidationError, match="cannot classify"):
            await anext(engine.encode("red", PoolingParams(task="classify"), "c"))

        await engine.sleep(0)
        waiting = asyncio.create_task(embed("red", "w"))
        gone = asyncio.create_task(embed("sun", "gone"))
        aborted = asyncio.create_task(embed("moon", "aborted"))
        while engine._engine is None or engine._engine.num_unfinished < 3:
            await asyncio.sleep(0)
        with pytest.raises(ValidationError, match="'w' is not finished yet"):
            await embed("sea", "w")
        gone.cancel()
        await engine.abort(["aborted", "unknown"])
        with pytest.raises(UnavailableError, match="the request was aborted"):
            await aborted
        await asyncio.gather(gone, return_exceptions=True)
        await engine.wake_up()
        assert (await waiting).request_id == "w"
        assert engine._engine.num_unfinished == 0
    finally:
        await engine.shutdown()


@pytest.mark.model
def test_a_real_decoder_embeds_as_transformers_does(smollm2: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    texts = ["The capital of France is", "import numpy as np", "Hello"]
    with LLM(str(smollm2), convert="embed", dtype="float32", max_model_len=256) as llm:
        results = llm.embed(texts, use_tqdm=False)
    model = AutoModel.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    for text, result in zip(texts, results, strict=True):
        expected = torch.nn.functional.normalize(
            states(model, tokenizer(text).input_ids)[-1], dim=0
        )
        np.testing.assert_allclose(result.outputs.embedding, expected.numpy(), atol=1e-4)
