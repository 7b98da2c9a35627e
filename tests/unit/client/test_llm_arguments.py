"""Engine arguments: honoured, refused, translated; what each does to a small random model."""

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.tiny_model import write_tiny_model

from octavo import LLM, AsyncEngineArgs, EngineArgs, LLMEngine, SamplingParams
from octavo.config import CompilationConfig, ProfilerConfig, StructuredOutputsConfig
from octavo.engine.metrics import RequestMetrics
from octavo.lora.request import LoRARequest
from octavo.utils import FlexibleArgumentParser
from octavo.v1.metrics.reader import Counter
from octavo_protocol.errors import ConfigError, UnavailableError, ValidationError
from octavo_protocol.outputs import CompletionOutput, RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.messages import EngineStats

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPT = [40, 41, 42]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., LLM]]:
    """Makes `LLM`s of the tiny model with random weights, and ends them."""
    made = []

    def start(**arguments: Any) -> LLM:
        made.append(LLM(str(folder), load_format="dummy", num_gpu_blocks_override=64, **arguments))
        return made[-1]

    yield start
    for llm in made:
        llm.shutdown()


def tokens(llm: LLM, params: SamplingParams = GREEDY) -> list[int]:
    [result] = llm.generate(PROMPT, params, use_tqdm=False)
    return list(result.outputs[0].token_ids)


# -- known, unknown, former -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_model_length", "max_model_len"),
        ("tensor_parallel", "tensor_parallel_size"),
        ("tokeniser", "tokenizer"),
    ],
)
def test_unknown_argument_is_a_type_error_with_a_suggestion(name: str, near: str) -> None:
    others: dict[str, Any] = {name: 1}

    with pytest.raises(TypeError, match=rf"'{name}'; did you mean '{near}'\?"):
        LLM("smollm2", **others)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pipeline_parallel_size", 2),
        ("quantization", "awq"),
        ("default_mm_loras", {"image": "/a"}),
        ("speculative_config", {"method": "ngram"}),
        ("distributed_executor_backend", "ray"),
        ("enable_prompt_embeds", True),
        ("kv_transfer_config", {"kv_connector": "x"}),
    ],
)
def test_known_argument_that_cannot_be_honoured_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        LLM("smollm2", **{name: value})

    assert str(refused.value) == f"{name}={value!r} is not supported yet"
    assert refused.value.parameter == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy must be one of fcfs, priority"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype must be one of auto, fp8, fp8_e4m3, got"),
        ({"load_format": "gguf"}, "load_format must be one of"),
        ({"logprobs_mode": "raw"}, "logprobs_mode must be one of raw_logprobs"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"block_size": 1.5}, r"block_size must be int \| None, got 1.5"),
        ({"max_model_len": 0}, "max_model_len must be at least 1, got 0"),
        ({"max_model_len": "1k"}, "max_model_len must be a number of tokens, -1 or 'auto', got"),
        ({"max_model_len": True}, r"max_model_len must be int \| str \| None, got True"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be above 0 and at most 1"),
        ({"gpu_memory_utilization": "90%"}, "gpu_memory_utilization must be float, got '90%'"),
        ({"kv_memory_fraction": 0}, "kv_memory_fraction must be above 0 and at most 1, got 0"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes must be at least 1, got 0"),
        ({"num_gpu_blocks_override": 0}, "num_gpu_blocks_override must be at least 1, got 0"),
        ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold must be at least 0"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"max_logprobs": -2}, "max_logprobs must be at least -1, got -2"),
        ({"cudagraph_capture_sizes": [0]}, "must be batch sizes of at least 1, got"),
        ({"max_cudagraph_capture_size": -1}, "max_cudagraph_capture_size must be at least 0"),
        ({"compilation_config": "fast"}, "must be a CompilationConfig or a dict, not str"),
        (
            {"cudagraph_capture_sizes": [1], "compilation_config": {"cudagraph_capture_sizes": []}},
            "give cudagraph_capture_sizes either as an argument or in compilation_config",
        ),
        ({"runner": "draft"}, "runner must be one of auto, generate, pooling, got 'draft'"),
        ({"convert": "reward"}, "convert must be one of auto, none, embed, classify, got 'reward'"),
        ({"pooler_config": {"kind": 1}}, "pooler_config has no field 'kind'; it has dimensions"),
        ({"pooler_config": {"pooling_type": "SUM"}}, "must be one of CLS, LAST, MEAN, ALL, STEP"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"seed": "x"}, r"seed must be int \| None, got 'x'"),
        ({"enforce_eager": "yes"}, "enforce_eager must be bool, got 'yes'"),
        ({"enable_prefix_caching": "no"}, r"enable_prefix_caching must be bool \| None, got 'no'"),
        (
            {"limit_mm_per_prompt": 3},
            r"limit_mm_per_prompt must be dict\[str, Any\] \| None, got 3",
        ),
        ({"hf_overrides": 3}, r"hf_overrides must be Mapping.* \| Callable.* \| None, got 3"),
        ({"hf_overrides": lambda _: None}, "must return the configuration"),
        ({"logits_processors": ["a.b.C"]}, "takes classes and 'module:Class', got 'a.b.C'"),
        ({"profiler_config": {"profiler": "torch"}}, "torch_profiler_dir must name a folder"),
        ({"profiler_config": {"profiler": "cuda"}}, "profiler must be 'torch', got 'cuda'"),
        ({"structured_outputs_config": {"back": 1}}, "has no field 'back'; it has backend"),
        ({"structured_outputs_config": "auto"}, "must be a StructuredOutputsConfig or a dict"),
        ({"chat_template": "no-such-file"}, "neither a file nor a template"),
    ],
)
def test_value_that_is_no_choice_is_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"model_type": "llama"})
    )
    with pytest.raises(ValidationError, match=message):
        EngineArgs(str(folder), **options).create_engine_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 1_000_000}, "max_model_len is 1000000"),
        ({"generation_config": "/no/such/folder"}, "generation_config"),
        ({"override_generation_config": {"top_p": 7}}, "top_p must be in"),
        ({"logits_processors": ["no.such:Class"]}, "cannot be loaded"),
        ({"reasoning_parser": "none_such"}, "no reasoning parser 'none_such'"),
    ],
)
def test_setting_that_does_not_fit_the_model_is_a_config_error(
    start: Callable[..., LLM], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(**options)


@pytest.mark.parametrize("model", [None, 3, b"smollm2"])
def test_model_is_named_by_text(model: Any) -> None:
    with pytest.raises(ValidationError, match=r"model must be str, got"):
        LLM(model)


def test_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model"):
        LLM(str(tmp_path / "nothing"))


@contextmanager
def deprecated(message: str) -> Iterator[None]:
    with pytest.warns(DeprecationWarning, match=message):
        yield


def test_engine_args_know_former_and_misspelt_arguments_too() -> None:
    former: dict[str, Any] = {"swap_space": 4, "task": "generate"}
    misspelt: dict[str, Any] = {"max_model_length": 4}

    with pytest.warns(DeprecationWarning, match="has no effect|is now") as warned:
        assert AsyncEngineArgs("m", **former) == AsyncEngineArgs("m", runner="generate")

    assert [each.filename for each in warned] == [__file__] * 2
    with pytest.raises(TypeError, match=r"EngineArgs\(\) got .* did you mean 'max_model_len'\?"):
        EngineArgs("m", **misspelt)


@pytest.mark.parametrize(
    "name", ["swap_space", "max_seq_len_to_capture", "disable_async_output_proc"]
)
def test_removed_argument_without_effect_warns(start: Callable[..., LLM], name: str) -> None:
    with deprecated(f"{name} has no effect any more"):
        llm = start(**{name: 4})

    assert len(tokens(llm)) == 6


def test_removed_arguments_with_a_meaning_are_translated(start: Callable[..., LLM]) -> None:
    with deprecated("task is now runner and convert: runner='generate'"):
        start(task="generate")
    with deprecated(r"rope_theta is now hf_overrides=\{'rope_theta': ...\}"):
        theta = start(rope_theta=500.0)
    with deprecated("is now a field of structured_outputs_config"):
        compact = start(guided_decoding_disable_any_whitespace=True)
    with deprecated("guided_decoding_backend has no effect"):
        start(guided_decoding_backend="xgrammar")

    assert theta.llm_engine.vllm_config.engine_config.hf_overrides == {"rope_theta": 500.0}
    assert compact.llm_engine.vllm_config.structured_outputs_config == StructuredOutputsConfig(
        disable_any_whitespace=True
    )
    with pytest.raises(ValidationError, match="task='dream' is not known; it was one of auto"):
        LLM("smollm2", task="dream")


@pytest.mark.parametrize(
    ("task", "runner", "convert"),
    [
        ("auto", "auto", "auto"),
        ("embed", "pooling", "embed"),
        ("embedding", "pooling", "embed"),
        ("classify", "pooling", "classify"),
        ("score", "pooling", "auto"),
        ("reward", "pooling", "auto"),
    ],
)
def test_a_pooling_task_is_a_runner_and_a_conversion(task: str, runner: str, convert: str) -> None:
    former: dict[str, Any] = {"task": task}

    with deprecated("task is now runner and convert"):
        arguments = EngineArgs("m", **former)

    assert (arguments.runner, arguments.convert) == (runner, convert)


def test_former_fields_of_the_pooler_are_translated() -> None:
    former: dict[str, Any] = {"override_pooler_config": {"pooling_type": "CLS", "normalize": True}}

    with pytest.warns(DeprecationWarning, match="is now") as warnings:
        arguments = EngineArgs("m", **former)

    assert arguments.pooler_config == {"pooling_type": "CLS", "use_activation": True}
    assert [str(each.message) for each in warnings] == [
        "override_pooler_config is now pooler_config",
        "pooler_config's normalize is now use_activation",
    ]


def test_arguments_that_only_tune_are_taken_and_named_once(
    start: Callable[..., LLM], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        start(
            device="cpu",
            gpu_memory_utilization=0.5,
            enforce_eager=True,
            trust_remote_code=True,
            enable_chunked_prefill=False,
            attention_backend="FLASH_ATTN",
            compilation_config=CompilationConfig(mode=3),
            tensor_parallel_size=1,
        )

    assert [record.getMessage() for record in caplog.records] == [
        "these change nothing here: trust_remote_code, enable_chunked_prefill, attention_backend"
    ]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, {}),
        ({"compilation_config": 3}, {}),
        ({"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}}, {}),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, {"enforce_eager": True}),
        (
            {"compilation_config": CompilationConfig(cudagraph_capture_sizes=[4, 2])},
            {"cuda_graph_sizes": (4, 2)},
        ),
        ({"cudagraph_capture_sizes": [8]}, {"cuda_graph_sizes": (8,)}),
        ({"max_cudagraph_capture_size": 16}, {"max_cuda_graph_size": 16}),
        ({"gpu_memory_utilization": 0.5}, {"gpu_memory_utilization": 0.5}),
        ({"kv_cache_memory_bytes": 4096}, {"kv_cache_memory_bytes": 4096}),
        ({"num_gpu_blocks_override": 7}, {"num_gpu_blocks_override": 7}),
        ({"max_num_seqs": 600}, {"max_num_seqs": 600}),
        ({"max_num_batched_tokens": 9}, {"max_num_batched_tokens": 9}),
        ({"device": torch.device("cuda")}, {"device": "cuda"}),
        ({"dtype": torch.float16}, {"dtype": "float16"}),
        ({"load_format": "fastsafetensors"}, {"load_format": "auto"}),
    ],
    ids=lambda given: "-".join(given) or "none",
)
def test_settings_of_a_gpu_reach_the_engine(
    folder: Path, arguments: dict[str, Any], wanted: dict[str, Any]
) -> None:
    settings = EngineArgs(str(folder), **arguments).create_engine_config().engine_config

    assert settings == EngineConfig(model=folder, **wanted)


def test_stages_of_the_start_are_told(
    start: Callable[..., LLM], capsys: pytest.CaptureFixture[str]
) -> None:
    start()

    line = capsys.readouterr().err.strip()
    assert line.startswith("octavo: ready in ")
    for stage in ("start", "weights", "profile", "KV cache", "warm-up"):
        assert f" {stage} " in line


def test_offline_steps_are_larger_by_default(start: Callable[..., LLM], folder: Path) -> None:
    assert start().llm_engine.vllm_config.engine_config.is_offline
    assert not EngineArgs(str(folder)).create_engine_config().engine_config.is_offline


# -- what arguments do ----------------------------------------------------------------------------


def test_all_ways_to_the_same_arguments_lead_to_the_same_engine(folder: Path) -> None:
    common: dict[str, Any] = {"max_model_len": 64, "load_format": "dummy", "seed": 3}
    args = EngineArgs(str(folder), **common)
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    line = f"--model {folder} --max_model_len 64 --load-format dummy --seed 3"

    read = EngineArgs.from_cli_args(parser.parse_args(line.split()))
    assert read == args
    assert EngineArgs(**dataclasses.asdict(args)) == args
    with LLM.from_engine_args(args) as one, LLM(str(folder), **common) as other:
        assert tokens(one) == tokens(other)
        assert one.model_config == other.model_config


def test_flags_have_the_types_of_the_arguments() -> None:
    parser = AsyncEngineArgs.add_cli_args(argparse.ArgumentParser())
    line = (
        "-tp 1 --max-model-len auto --no-enable-prefix-caching --enforce-eager --hf-overrides "
        '{"a":1} --served-model-name a --logits-processors m:A m:B --enable-log-requests'
    )

    args = AsyncEngineArgs.from_cli_args(parser.parse_args(line.split()))

    assert (args.tensor_parallel_size, args.max_model_len) == (1, "auto")
    assert (args.enable_prefix_caching, args.enforce_eager) == (False, True)
    assert (args.hf_overrides, args.logits_processors) == ({"a": 1}, ["m:A", "m:B"])
    assert args.enable_log_requests


def test_seed_of_random_weights_and_config_overrides_change_outputs(
    start: Callable[..., LLM], folder: Path
) -> None:
    plain = start()

    def narrower(config: Any) -> Any:
        config.rope_theta = 10.0
        config.num_hidden_layers = 1
        return config

    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"model_type": "llama"})
    )
    layers = [
        len(llm.apply_model(lambda model: model.model.layers)[0])
        for llm in (
            plain,
            start(hf_overrides={"num_hidden_layers": 1}),
            start(hf_overrides=narrower),
        )
    ]

    assert layers == [2, 1, 1]
    assert tokens(start(seed=5)) != tokens(plain)


@pytest.mark.parametrize("value", [-1, "auto"])
def test_the_largest_context_that_fits_is_found(folder: Path, value: Any) -> None:
    common: dict[str, Any] = {"load_format": "dummy", "num_gpu_blocks_override": 10}
    with pytest.raises(ConfigError, match="max_model_len is 512"):
        LLM(str(folder), **common)

    with LLM(str(folder), max_model_len=value, **common) as small:
        assert small.model_config.max_model_len == 160
        assert len(tokens(small, SamplingParams(max_tokens=None, ignore_eos=True))) == 157
    with LLM(str(folder), max_model_len=value, load_format="dummy") as whole:
        assert whole.model_config.max_model_len == 512


def test_defaults_come_from_the_model_another_folder_or_nobody(
    start: Callable[..., LLM], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5}')

    def defaults(**arguments: Any) -> SamplingParams:
        return start(**arguments).get_default_sampling_params()

    assert defaults() == SamplingParams(temperature=0.7, top_k=50)
    assert defaults(generation_config="vllm") == SamplingParams()
    assert defaults(generation_config=str(tmp_path)) == SamplingParams(top_p=0.5)
    assert defaults(override_generation_config={"max_new_tokens": 3}) == SamplingParams(
        temperature=0.7, top_k=50, max_tokens=3
    )


def test_without_a_tokenizer_token_ids_go_in_and_out(start: Callable[..., LLM]) -> None:
    llm = start(skip_tokenizer_init=True)

    [result] = llm.generate({"prompt_token_ids": PROMPT}, GREEDY, use_tqdm=False)

    assert len(result.outputs[0].token_ids) == 6
    assert result.outputs[0].text == ""
    with pytest.raises(ValidationError, match="leaves no tokenizer: give token ids"):
        llm.generate("text", use_tqdm=False)
    with pytest.raises(ValidationError, match="chat needs one"):
        llm.chat([{"role": "user", "content": "x"}], use_tqdm=False)
    with pytest.raises(ValidationError, match="leaves no tokenizer"):
        llm.get_tokenizer()


class OnlyEven:
    """Forbids odd tokens."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        if (sampling_params.extra_args or {}).get("odd"):
            raise ValueError("odd is not allowed")

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        pass

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, 1::2] = -float("inf")
        return logits


def test_logits_processors_see_every_step_and_may_refuse(start: Callable[..., LLM]) -> None:
    llm = start(logits_processors=[OnlyEven])

    assert any(token % 2 for token in tokens(start()))
    assert all(token % 2 == 0 for token in tokens(llm))
    with pytest.raises(ValidationError, match="odd is not allowed"):
        tokens(llm, SamplingParams(extra_args={"odd": True}))


def test_logprobs_beyond_the_limit_are_refused(start: Callable[..., LLM]) -> None:
    llm = start(max_logprobs=3)

    with pytest.raises(ValidationError, match="3"):
        tokens(llm, SamplingParams(logprobs=4))
    [result] = llm.generate(PROMPT, SamplingParams(logprobs=3, max_tokens=1), use_tqdm=False)
    assert result.outputs[0].logprobs is not None
    assert len(result.outputs[0].logprobs[0]) in (3, 4)


def test_structured_outputs_follow_the_engine_s_settings(start: Callable[..., LLM]) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    params = SamplingParams(
        temperature=0, max_tokens=64, structured_outputs=StructuredOutputsParams(json=schema)
    )
    before = params.clone()
    llm = start(
        structured_outputs_config={
            "disable_any_whitespace": True,
            "disable_additional_properties": True,
        }
    )

    [result] = llm.generate("x", params, use_tqdm=False)

    assert result.outputs[0].text == '{"a":1}'
    assert params == before


def test_sleeping_engine_gives_memory_up_and_wakes(start: Callable[..., LLM]) -> None:
    llm = start(enable_sleep_mode=True)
    expected = tokens(llm)

    llm.sleep(level=1)
    with pytest.raises(UnavailableError, match="sleeps"):
        tokens(llm)
    assert llm.llm_engine.is_sleeping()
    assert llm.wake_up(["weights"]) is False
    assert llm.wake_up() is True

    assert tokens(llm) == expected
    with pytest.raises(ValidationError):
        start().sleep(level=1)


def test_profile_is_written_where_the_configuration_says(
    start: Callable[..., LLM], tmp_path: Path
) -> None:
    traces = tmp_path / "traces"
    llm = start(profiler_config=ProfilerConfig("torch", str(traces)))

    llm.start_profile()
    tokens(llm)
    llm.stop_profile()

    assert [path.stat().st_size > 0 for path in traces.iterdir()] == [True]
    with pytest.raises(ValidationError, match="max_iterations is not supported: every step"):
        llm.start_profile("a", delay_iterations=None, max_iterations=3)
    with pytest.raises(ValidationError):
        start().start_profile()


# -- LLMEngine ------------------------------------------------------------------------------------


@pytest.fixture
def engine(folder: Path) -> Iterator[LLMEngine]:
    engine = LLMEngine.from_engine_args(
        EngineArgs(str(folder), load_format="dummy", num_gpu_blocks_override=64)
    )
    yield engine
    engine.shutdown()


def drain(engine: LLMEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def test_engine_steps_requests_of_every_prompt_form(engine: LLMEngine) -> None:
    assert engine.add_request("a", "dog", GREEDY) == "a"
    engine.add_request("b", {"prompt_token_ids": PROMPT}, GREEDY, prompt_text="label")
    assert engine.get_num_unfinished_requests() == 2

    last = {output.request_id: output for output in drain(engine)}

    assert {rid: len(out.outputs[0].token_ids) for rid, out in last.items()} == {"a": 6, "b": 6}
    assert (last["a"].prompt, last["b"].prompt) == ("dog", "label")


def test_engine_output_kinds_are_those_of_the_request(engine: LLMEngine) -> None:
    kinds = {}
    for kind in RequestOutputKind:
        params = GREEDY.clone()
        params.output_kind = kind
        engine.add_request(kind.name, PROMPT, params)
        kinds[kind] = [len(output.outputs[0].token_ids) for output in drain(engine)]

    assert kinds == {
        RequestOutputKind.CUMULATIVE: [1, 2, 3, 4, 5, 6],
        RequestOutputKind.DELTA: [1] * 6,
        RequestOutputKind.FINAL_ONLY: [6],
    }
    ended = [m for m in engine.get_metrics() if m.labels.get("finished_reason") == "length"]
    assert [getattr(metric, "value", None) for metric in ended] == [3]


def test_engine_abort_ends_requests_and_ignores_unknown_ones(engine: LLMEngine) -> None:
    engine.add_request("a", PROMPT, GREEDY)
    engine.add_request("b", PROMPT, GREEDY)
    engine.step()

    engine.abort_request("a")
    engine.abort_request(["b", "never seen"])

    assert not engine.has_unfinished_requests()
    assert engine.reset_prefix_cache()


def test_metrics_count_a_request_under_the_id_of_an_aborted_one() -> None:
    metrics = RequestMetrics("tiny")
    ended, running = CompletionOutput(0, "", [1], finish_reason="stop"), CompletionOutput(1, "", [])
    metrics.observe(RequestOutput("r", None, [1], outputs=[ended, running]))

    metrics.forget(["r", "never seen"])
    metrics.observe(RequestOutput("r", None, [1], outputs=[ended], finished=True))

    counts = [m.value for m in metrics.read(EngineStats()) if isinstance(m, Counter)]
    assert max(counts) == 2  # both ended by "stop"


def test_engine_that_was_shut_down_says_so(folder: Path) -> None:
    llm = LLM(str(folder), load_format="dummy", num_gpu_blocks_override=64)
    llm.shutdown()
    llm.shutdown()

    with pytest.raises(UnavailableError, match="the engine was shut down: make another one"):
        llm.generate(PROMPT, GREEDY)


def test_engine_refuses_what_is_no_request_and_queues_nothing(engine: LLMEngine) -> None:
    wrong: Any = 7
    with pytest.raises(TypeError, match="request_id must be a string, not int"):
        engine.add_request(wrong, PROMPT, GREEDY)
    with pytest.raises(ValidationError, match="LoRA"):
        engine.add_request("a", PROMPT, GREEDY, lora_request=LoRARequest("a", 1, "/a"))
    with pytest.raises(TypeError, match="expected SamplingParams"):
        engine.add_request("a", PROMPT, wrong)

    assert not engine.has_unfinished_requests()
