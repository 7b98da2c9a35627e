"""The whole engine on a GPU: outputs are those of the CPU engine and of Hugging Face, in fp32."""

import copy
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.gpu.conftest import PROMPT, NewEngine, Replays, TinyModel
from tests.unit.runtime.test_engine_sampling import PROCESSOR, check_positions, generate

from octavo_protocol.errors import ConfigError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.worker.gpu import step_forward
from octavo_runtime.worker.model_runner import SampleWork
from octavo_runtime.worker.step_input import StepSequence

pytestmark = pytest.mark.gpu

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 20, "ignore_eos": True}
_LONG = PROMPT + PROMPT


def requests() -> list[dict[str, Any]]:
    """Eleven, between the sizes of two graphs; of all lengths, some share their first blocks."""
    lengths = [(45, 12), (30, 1), (1, 25), (90, 30), (44, 7), (2, 3), (33, 18), (1, 9), (60, 20)]
    plain = [GREEDY | {"prompt": _LONG[:length], "max_tokens": count} for length, count in lengths]
    return [
        *plain,
        GREEDY | {"prompt": PROMPT[3:], "logprobs": 3},
        GREEDY | {"prompt": PROMPT[9:], "ignore_eos": False, "max_tokens": 30},
    ]


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def keep_device_busy() -> None:
    """For some 50 ms, so that the host runs ahead as far as it may."""
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enforce_eager": True},
        {"max_num_seqs": 4, "max_num_batched_tokens": 16},
        {"long_prefill_token_threshold": 1},
        {"num_gpu_blocks_override": 9},
        {"enable_prefix_caching": False, "block_size": 8, "num_gpu_blocks_override": 128},
        {"block_size": 32, "cuda_graph_sizes": (3, 10)},
    ],
    ids=["graphs", "eager", "chunked", "one-by-one", "preempted", "uncached", "few-graphs"],
)
def test_greedy_tokens_are_those_of_the_cpu_and_of_hugging_face(
    tiny: TinyModel, new_engine: NewEngine, replays: Replays, options: dict[str, Any]
) -> None:
    expected = generate(new_engine(device="cpu", **options), *requests())
    llm = new_engine(**options)
    for _ in range(2):  # the second time from the prefix cache
        keep_device_busy()
        actual = generate(llm, *requests())
        assert tokens_of(actual) == tokens_of(expected)
        for mine, theirs in zip(actual, expected, strict=True):
            assert mine.outputs[0].finish_reason == theirs.outputs[0].finish_reason
            assert mine.outputs[0].text == theirs.outputs[0].text
    for request, output in zip(requests(), tokens_of(actual), strict=True):
        tiny.check_greedy(request["prompt"], output)
    assert (replays.count > 0) == ("enforce_eager" not in options)
    if options.get("num_gpu_blocks_override") == 9:
        assert llm.core.scheduler.num_preemptions > 0
    if options.get("enable_prefix_caching", True):
        assert llm.core.scheduler.num_hit_tokens > 0
    assert llm.core.scheduler.pool.num_free == llm.core.scheduler.pool.num_blocks


def test_chunks_of_a_prompt_that_the_device_has_yet_to_begin_arrive_whole(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    """They sample nothing, so no token tells the host that the device is behind."""
    llm = new_engine(max_num_batched_tokens=16, enable_prefix_caching=False)
    for _ in range(3):
        keep_device_busy()
        [output] = generate(llm, GREEDY | {"prompt": _LONG})
        tiny.check_greedy(_LONG, list(output.outputs[0].token_ids))


def test_blocks_that_do_not_fit_the_copy_of_a_step_are_sent_beside_it(
    tiny: TinyModel, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_forward, "_MAX_NEW_BLOCKS", 3)
    llm = new_engine()
    keep_device_busy()
    for request, output in zip(requests(), generate(llm, *requests()), strict=True):
        tiny.check_greedy(request["prompt"], list(output.outputs[0].token_ids))


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_log_probabilities_are_those_of_hugging_face(
    tiny: TinyModel, new_engine: NewEngine, eager: bool
) -> None:
    llm = new_engine(enforce_eager=eager, max_num_batched_tokens=16)
    wanted = GREEDY | {"logprobs": 3, "prompt_logprobs": 2}
    plain, drawn, *_ = generate(llm, wanted | {}, wanted | DRAWN, *requests())

    for output in (plain, drawn):
        tokens = list(output.outputs[0].token_ids)
        reference = tiny.logits(PROMPT + tokens)[:-1].log_softmax(-1)
        assert output.prompt_logprobs is not None
        check_positions(output.prompt_logprobs[1:], PROMPT[1:], reference[: len(PROMPT) - 1], 2)
        check_positions(output.outputs[0].logprobs, tokens, reference[len(PROMPT) - 1 :], 3)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.2), ("float16", 0.05)])
def test_rounded_log_probabilities_stay_near_those_of_fp32(
    tiny: TinyModel, new_engine: NewEngine, dtype: Any, bound: float
) -> None:
    """bf16 has 8 bits of mantissa, fp16 has 11. The reference has the same rounded weights."""
    half = copy.deepcopy(tiny.hugging_face).to(getattr(torch, dtype)).float()
    worst = 0.0
    llm = new_engine(dtype=dtype)
    outputs = generate(llm, *[each | {"prompt_logprobs": 3} for each in requests()])
    for request, output in zip(requests(), outputs, strict=True):
        prompt = request["prompt"]
        with torch.inference_mode():
            reference = half(torch.tensor([prompt])).logits[0].log_softmax(-1)
        for row, entry in zip(reference, (output.prompt_logprobs or [])[1:], strict=False):
            differences = [abs(p.logprob - float(row[t])) for t, p in (entry or {}).items()]
            worst = max(worst, *differences)
    print(f"worst log-probability in {dtype}: {worst:.4f}")
    assert 0 < worst < bound


def test_samples_of_one_prompt_do_not_depend_on_graphs_or_neighbours(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    request = DRAWN | {"n": 3, "top_p": 0.9, "top_k": 50}
    [alone] = generate(new_engine(enforce_eager=True), request | {})
    together, *_ = generate(new_engine(max_num_batched_tokens=16), request | {}, *requests())
    third = generate(new_engine(), request | {"n": 1, "seed": 9})

    samples = [list(each.token_ids) for each in together.outputs]
    assert samples == [list(each.token_ids) for each in alone.outputs]
    assert len({tuple(each) for each in samples}) == 3
    assert samples[2] == tokens_of(third)[0]
    [greedy] = generate(new_engine(), GREEDY | {"n": 1})
    tiny.check_greedy(PROMPT, list(greedy.outputs[0].token_ids))


def test_rows_that_need_the_host_run_beside_plain_ones(new_engine: NewEngine) -> None:
    rules: list[dict[str, Any]] = [
        GREEDY | {"repetition_penalty": 1.5},
        GREEDY | {"frequency_penalty": 0.7, "presence_penalty": 0.3, "logprobs": 2},
        GREEDY | {"logit_bias": {9: 50.0}, "max_tokens": 3},
        GREEDY | {"ignore_eos": False, "min_tokens": 5},
        GREEDY | {"allowed_token_ids": [5, 6, 7]},
        GREEDY | {"structured_outputs": StructuredOutputsParams(regex="[ab]{3}c")},
        GREEDY | {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"])},
        GREEDY | {"logprobs": 40},
        DRAWN | {"top_k": 40, "presence_penalty": 0.5},
    ]
    both = [*rules, *requests()]
    options = {"max_logprobs": 40}
    expected = generate(new_engine(device="cpu", **options), *[dict(each) for each in both])
    actual = generate(new_engine(**options), *[dict(each) for each in both])

    assert tokens_of(actual) == tokens_of(expected)
    assert re.fullmatch("[ab]{3}c", actual[5].outputs[0].text)
    assert actual[6].outputs[0].text in ("yes", "no")


def test_draws_of_few_tokens_are_those_of_the_cpu(new_engine: NewEngine) -> None:
    """The noise is the same; where all tokens race, the CPU races them in groups."""
    drawn = [DRAWN | {"seed": seed, "top_k": 30, "top_p": 0.9} for seed in range(5)]
    expected = generate(new_engine(device="cpu"), *[dict(each) for each in drawn])
    actual = generate(new_engine(), *[dict(each) for each in drawn])

    assert tokens_of(actual) == tokens_of(expected)


@pytest.mark.parametrize(
    "options",
    [{"logprobs_mode": "processed_logprobs"}, {"logits_processors": (PROCESSOR,)}],
    ids=["processed_logprobs", "processor"],
)
def test_engines_with_rules_of_their_own_sample_on_the_host(
    new_engine: NewEngine, options: dict[str, Any]
) -> None:
    wanted = [DRAWN | {"top_k": 9, "logprobs": 2}, GREEDY | {"logprobs": 1}, *requests()]
    if "logits_processors" in options:
        wanted[1]["extra_args"] = {"only": 77}
    expected = generate(new_engine(device="cpu", **options), *[dict(each) for each in wanted])
    actual = generate(new_engine(**options), *[dict(each) for each in wanted])

    assert tokens_of(actual) == tokens_of(expected)
    for mine, theirs in zip(actual[:2], expected[:2], strict=True):
        for left, right in zip(
            mine.outputs[0].logprobs or [], theirs.outputs[0].logprobs or [], strict=True
        ):
            assert [(t, p.rank) for t, p in left.items()] == [(t, p.rank) for t, p in right.items()]
            for token, found in left.items():
                assert found.logprob == pytest.approx(right[token].logprob, abs=1e-4)


def finish(llm: LLMEngine) -> dict[str, list[int]]:
    """Steps until nothing is left; tokens of what ends."""
    done: dict[str, list[int]] = {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            done[output.request_id] = list(output.outputs[0].token_ids)
        llm.core.scheduler.check()
    return done


def add(llm: LLMEngine, request_id: str, prompt: list[int], max_tokens: int = 20) -> None:
    kind = RequestOutputKind.FINAL_ONLY
    params = SamplingParams(
        temperature=0.0, ignore_eos=True, max_tokens=max_tokens, output_kind=kind
    )
    llm.add_request(request_id, prompt, params)


def test_ids_of_requests_that_were_aborted_in_flight_can_come_again(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    llm = new_engine(num_gpu_blocks_override=24, max_num_seqs=4)
    prompts = {str(i): _LONG[i : i + 20 + 9 * i] for i in range(4)}
    for name, prompt in prompts.items():
        add(llm, name, prompt)
    for _ in range(5):
        llm.step()
    keep_device_busy()
    llm.abort_request(["1", "3"])
    prompts |= {"1": _LONG[7:50], "3": _LONG[2:3]}
    for name in ("1", "3"):
        add(llm, name, prompts[name])

    done = finish(llm)

    assert done.keys() == prompts.keys()
    for name, output in done.items():
        assert len(output) == 20
        tiny.check_greedy(prompts[name], output)


def test_an_id_can_come_again_while_the_step_after_its_end_still_runs(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    """The device was told to go on with it before the host knew its end token."""
    llm = new_engine()
    stop = generate(llm, GREEDY | {})[0].outputs[0].token_ids[4]
    kind = RequestOutputKind.FINAL_ONLY
    params = SamplingParams(temperature=0.0, stop_token_ids=[stop], output_kind=kind)
    add(llm, "long", _LONG, max_tokens=30)
    done: dict[str, list[int]] = {}
    for prompt in (PROMPT, PROMPT[5:], PROMPT[11:], PROMPT):
        llm.add_request("again", prompt, params)
        keep_device_busy()
        done.pop("again", None)
        while "again" not in done:
            done |= {each.request_id: list(each.outputs[0].token_ids) for each in llm.step()}
        tiny.check_greedy(prompt, done["again"])
    tiny.check_greedy(
        _LONG, (finish(llm) | done)["long"] if "long" in done else finish(llm)["long"]
    )


def test_running_requests_survive_the_reset_of_the_prefix_cache(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    llm = new_engine()
    prompts = {str(i): _LONG[i : i + 15 + 11 * i] for i in range(6)}
    for name, prompt in prompts.items():
        add(llm, name, prompt)
    for count in range(12):
        llm.step()
        if count % 4 == 3:
            keep_device_busy()
            assert llm.reset_prefix_cache(reset_running_requests=True)

    for name, output in finish(llm).items():
        assert len(output) == 20
        tiny.check_greedy(prompts[name], output)


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_the_gpu_and_requests_go_on_after_it(
    tiny: TinyModel, new_engine: NewEngine, replays: Replays, level: int
) -> None:
    """All rows of the device's tables are taken when it falls asleep."""
    llm = new_engine(max_num_seqs=3, enable_sleep_mode=True, num_gpu_blocks_override=4096)
    prompts = {str(i): _LONG[i : i + 15 + 11 * i] for i in range(5)}
    for name, prompt in prompts.items():
        add(llm, name, prompt, max_tokens=30)
    for _ in range(6):
        llm.step()
    torch.cuda.synchronize()
    awake, awake_reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    weights = sum(p.numel() * 4 for p in tiny.hugging_face.parameters())
    cache = llm.info.num_blocks * llm.core.runner.kv_block_bytes

    for _ in range(2):  # the second time asleep already
        llm.sleep(level, mode="keep")
    freed = awake - torch.cuda.memory_allocated()
    given_back = awake_reserved - torch.cuda.memory_reserved()
    llm.wake_up()
    before = replays.count
    done = finish(llm)

    assert freed >= weights + cache
    assert given_back >= cache
    assert replays.count > before
    assert done.keys() == prompts.keys()
    for name, output in done.items():
        assert len(output) == 30
        tiny.check_greedy(prompts[name], output)


def test_a_deeper_sleep_forgets_the_weights_on_the_host(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    llm = new_engine(enable_sleep_mode=True)
    llm.sleep(1)
    llm.sleep(2)
    assert not llm.wake_up(["weights"])
    llm.sleep(1)
    assert llm.wake_up()
    [output] = generate(llm, GREEDY | {})
    tiny.check_greedy(PROMPT, list(output.outputs[0].token_ids))


def test_a_sequence_may_fill_the_context(tiny: TinyModel, new_engine: NewEngine) -> None:
    llm = new_engine(max_model_len=64)
    outputs = generate(
        llm,
        *[GREEDY | {"prompt": PROMPT[:n], "max_tokens": None} for n in (45, 1, 17)],
        GREEDY | {"prompt": (PROMPT + PROMPT)[:63], "max_tokens": None},
    )
    for output in outputs:
        prompt, tokens = list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids)
        assert len(prompt) + len(tokens) == 64
        assert output.outputs[0].finish_reason == "length"
        tiny.check_greedy(prompt, tokens)


def test_blocks_far_into_a_large_cache_are_found(tiny: TinyModel, new_engine: NewEngine) -> None:
    """Offsets of elements pass 2^31."""
    block_elements = 16 * 2 * tiny.hugging_face.config.head_dim
    num_blocks = 2**31 // block_elements + 2000
    if torch.cuda.mem_get_info()[0] < 6 * num_blocks * block_elements * 4:
        pytest.skip("needs a GPU with more free memory")
    llm = new_engine(num_gpu_blocks_override=num_blocks)
    pool = llm.core.scheduler.pool
    held = pool.allocate(num_blocks - 500)
    assert max(held) < num_blocks - 400  # what is left lies at the end
    for request in requests():
        llm.add_request(str(id(request)), request.pop("prompt"), SamplingParams(**request))
    outputs: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        outputs |= {output.request_id: output for output in llm.step()}
    for output in outputs.values():
        tiny.check_greedy(list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids))


def test_memory_for_the_cache_is_what_the_settings_say(new_engine: NewEngine) -> None:
    options: dict[str, Any] = {"num_gpu_blocks_override": None, "max_num_seqs": 8}
    block_bytes = new_engine().core.runner.kv_block_bytes

    assert new_engine(kv_cache_memory_bytes=23 * block_bytes + 5, **options).info.num_blocks == 23
    most = new_engine(gpu_memory_utilization=0.5, **options)
    assert most.info.num_blocks == 8 * 8  # more than this no 8 sequences of 128 tokens can use
    assert most.info.stages["profile"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gpu_memory_utilization": 1e-4},
            r"no memory is left for the KV cache: .* GiB x gpu_memory_utilization 0\.0001 = ",
        ),
        ({"kv_cache_memory_bytes": 100_000}, r"blocks x 16 tokens = .*max_model_len is 128"),
        ({"num_gpu_blocks_override": 10**9}, r"cannot allocate the KV cache: 1000000000 blocks"),
    ],
    ids=["utilization", "bytes", "blocks"],
)
def test_memory_that_does_not_suffice_is_explained(
    new_engine: NewEngine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_engine(**{"num_gpu_blocks_override": None} | options)


@contextmanager
def only_memory_for(num_bytes: int) -> Iterator[None]:
    """Beside what this process has already."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_weights_that_do_not_fit_are_explained(new_engine: NewEngine) -> None:
    message = r"the weights do not fit: of the GPU's .* GiB"
    with only_memory_for(2**20), pytest.raises(ConfigError, match=message):
        new_engine()


def test_a_step_that_does_not_fit_is_explained(new_engine: NewEngine) -> None:
    message = r"a step of 65536 tokens and 512 sequences does not fit beside .* GiB of weights"
    options = {"max_num_seqs": 512, "max_num_batched_tokens": 65_536}
    with only_memory_for(2**26), pytest.raises(ConfigError, match=message):
        new_engine(num_gpu_blocks_override=None, **options)


def test_an_engine_whose_memory_is_taken_goes_on_sleeping(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    llm = new_engine(enable_sleep_mode=True)
    for level in (1, 2):
        llm.sleep(level)
        message = "the weights do not fit|cannot allocate the KV cache|the first steps do not fit"
        with only_memory_for(0), pytest.raises(ConfigError, match=message):
            llm.wake_up()
        assert llm.is_sleeping()
        assert llm.wake_up()
        [output] = generate(llm, GREEDY | {})
        tiny.check_greedy(PROMPT, list(output.outputs[0].token_ids))


def test_an_engine_that_is_shut_down_gives_its_memory_back(
    tiny: TinyModel, new_engine: NewEngine
) -> None:
    llm = new_engine(num_gpu_blocks_override=4096)
    generate(llm, GREEDY | {})
    running = torch.cuda.memory_allocated()
    weights = sum(p.numel() * 4 for p in tiny.hugging_face.parameters())
    cache = llm.info.num_blocks * llm.core.runner.kv_block_bytes

    llm.shutdown()

    assert running - torch.cuda.memory_allocated() >= weights + cache


def test_a_step_without_samples_is_waited_for(new_engine: NewEngine) -> None:
    launch = new_engine().core.runner.launch
    keep_device_busy()
    step = launch([StepSequence(PROMPT[:16], 0, [0], key="r")], SampleWork())
    was_over = torch.cuda.current_stream().query()
    step.result()

    assert not was_over
    assert torch.cuda.current_stream().query()
