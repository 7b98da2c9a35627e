"""`LLM` with LoRA adapters, on a small random model: each prompt gets its own, and keeps to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.lora_adapters import write_adapter
from tests.fakes.tiny_model import write_tiny_model

from octavo import LLM, SamplingParams
from octavo.beam_search import BeamSearchParams
from octavo.exceptions import LoRAAdapterNotFoundError
from octavo.lora.request import LoRARequest
from octavo_protocol.errors import UnavailableError, ValidationError
from octavo_protocol.outputs import RequestOutput

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
TEXT = "the quick brown fox"
NUM_ADAPTERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    model = write_tiny_model(folder / "model")
    for number in range(1, NUM_ADAPTERS + 1):
        write_adapter(folder / f"a{number}", model, seed=number, scale=4.0)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(
        str(folder / "model"),
        load_format="dummy",
        dtype="float32",
        num_gpu_blocks_override=64,
        enable_lora=True,
        max_loras=2,
    ) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_left(llm: LLM) -> Iterator[None]:
    yield
    engine = llm.llm_engine.engine
    assert not engine.has_unfinished_requests()
    for number in llm.llm_engine.list_loras():
        llm.llm_engine.remove_lora(number)
    assert engine.core.list_adapters() == []


@pytest.fixture
def adapters(folder: Path) -> list[LoRARequest]:
    return [
        LoRARequest(f"a{number}", number, str(folder / f"a{number}"))
        for number in range(1, NUM_ADAPTERS + 1)
    ]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_each_prompt_uses_its_own_adapter_as_if_it_were_alone(
    llm: LLM, adapters: list[LoRARequest]
) -> None:
    wanted = [None, *adapters[:2]]
    alone = [
        tokens(llm.generate(TEXT, GREEDY, lora_request=each, use_tqdm=False))[0] for each in wanted
    ]
    together = llm.generate([TEXT] * 3, GREEDY, lora_request=wanted, use_tqdm=False)

    assert tokens(together) == alone
    assert len({tuple(each) for each in alone}) == 3
    assert [output.lora_request for output in together] == wanted
    assert llm.llm_engine.list_loras() == {1, 2}


def test_more_adapters_than_host_memory_has_room_for_all_get_their_turn(
    llm: LLM, adapters: list[LoRARequest]
) -> None:
    alone = [
        tokens(llm.generate(TEXT, GREEDY, lora_request=each, use_tqdm=False))[0]
        for each in adapters
    ]
    together = llm.generate(
        [TEXT] * 3 * NUM_ADAPTERS, GREEDY, lora_request=adapters * 3, use_tqdm=False
    )

    assert tokens(together) == alone * 3


def test_chat_and_beam_search_take_adapters(llm: LLM, adapters: list[LoRARequest]) -> None:
    conversation = [{"role": "user", "content": "dog"}]
    answers = [
        tokens(llm.chat(conversation, GREEDY, use_tqdm=False, lora_request=each))[0]
        for each in (None, adapters[0])
    ]
    beams = [
        llm.beam_search([TEXT], BeamSearchParams(2, 4), lora_request=each)[0].sequences
        for each in (None, adapters[0])
    ]

    assert answers[0] != answers[1]
    assert beams[0][0].tokens != beams[1][0].tokens
    assert {beam.lora_request for beam in beams[1]} == {adapters[0]}


def test_new_files_are_used_after_a_load_in_place_alone(
    llm: LLM, adapters: list[LoRARequest], folder: Path
) -> None:
    def answer(path: str, *, load_inplace: bool = False) -> list[list[int]]:
        wanted = LoRARequest("x", 9, str(folder / path), load_inplace=load_inplace)
        return tokens(llm.generate([TEXT] * 2, GREEDY, lora_request=wanted, use_tqdm=False))

    first = answer("a1")
    with pytest.raises(ValidationError, match="from another lora_path: set load_inplace"):
        answer("a2")
    num_loads = llm.llm_engine.engine.adapters.book.num_loads
    second = answer("a2", load_inplace=True)

    assert first != second == answer("a2")
    assert llm.llm_engine.engine.adapters.book.num_loads == num_loads + 1


def test_pinned_adapters_stay_and_no_room_is_an_error(
    llm: LLM, adapters: list[LoRARequest]
) -> None:
    engine = llm.llm_engine
    for each in adapters[:2]:
        assert engine.add_lora(each)
        assert engine.pin_lora(each.lora_int_id)
    with pytest.raises(UnavailableError):
        llm.generate(TEXT, GREEDY, lora_request=adapters[2], use_tqdm=False)

    assert len(llm.generate(TEXT, GREEDY, lora_request=adapters[0], use_tqdm=False)) == 1
    assert (engine.pin_lora(7), engine.remove_lora(7)) == (False, False)


def test_bad_adapter_is_refused_before_anything_runs(llm: LLM, folder: Path) -> None:
    (folder / "pickled").mkdir(exist_ok=True)
    (folder / "pickled" / "adapter_model.bin").write_bytes(b"\x80")
    (folder / "pickled" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    write_adapter(folder / "large", folder / "model", seed=1, rank=64)

    def generate(lora_request: object) -> None:
        llm.generate([TEXT] * 2, GREEDY, lora_request=lora_request, use_tqdm=False)  # type: ignore[arg-type]

    with pytest.raises(LoRAAdapterNotFoundError, match="no such folder"):
        generate(LoRARequest("n", 1, "/nowhere"))
    with pytest.raises(ValidationError, match="64"):
        generate(LoRARequest("n", 1, str(folder / "large")))
    with pytest.raises((ValidationError, LoRAAdapterNotFoundError)):
        generate(LoRARequest("n", 1, str(folder / "pickled")))
    with pytest.raises(ValidationError, match="1 lora_request for 2 prompts"):
        generate([None])
    with pytest.raises(TypeError, match="expected LoRARequest, got int"):
        generate(7)
    assert llm.llm_engine.list_loras() == set()


def test_vectors_of_a_decoder_are_of_each_prompt_s_own_adapter(
    folder: Path, adapters: list[LoRARequest]
) -> None:
    wanted = [adapters[0], None, adapters[1], adapters[0]]
    options = {"load_format": "dummy", "dtype": "float32", "num_gpu_blocks_override": 64}
    with LLM(str(folder / "model"), runner="pooling", enable_lora=True, **options) as llm:
        vectors = [
            tuple(output.outputs.embedding)
            for output in llm.embed([TEXT] * 4, lora_request=wanted, use_tqdm=False)
        ]
        alone = llm.embed(TEXT, lora_request=adapters[1], use_tqdm=False)[0].outputs.embedding

    assert vectors[0] == pytest.approx(vectors[3], abs=1e-5)
    assert vectors[2] == pytest.approx(alone, abs=1e-5)
    assert max(abs(one - two) for one, two in zip(vectors[0], vectors[1], strict=True)) > 0.01
    assert max(abs(one - two) for one, two in zip(vectors[0], vectors[2], strict=True)) > 0.01
