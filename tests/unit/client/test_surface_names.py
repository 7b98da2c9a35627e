"""Every name that scripts for vLLM import is there, under the same path."""

import copy
import importlib
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import pytest

import octavo
from octavo import ModelRegistry, PoolingParams, SamplingParams, initialize_ray_cluster
from octavo.exceptions import VLLMError, VLLMValidationError
from octavo.logprobs import Logprob
from octavo.lora.request import LoRARequest
from octavo.pooling_params import LateChunkingParams
from octavo.sampling_params import GuidedDecodingParams, StructuredOutputsParams
from octavo.utils.argparse_utils import FlexibleArgumentParser
from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import RequestOutputKind

PATHS = {
    "": "LLM SamplingParams PoolingParams PromptType TextPrompt TokensPrompt ModelRegistry "
    "LLMEngine AsyncLLMEngine EngineArgs AsyncEngineArgs RequestOutput CompletionOutput "
    "PoolingOutput PoolingRequestOutput EmbeddingOutput EmbeddingRequestOutput "
    "ClassificationOutput ClassificationRequestOutput ScoringOutput ScoringRequestOutput "
    "initialize_ray_cluster __version__ __version_tuple__",
    ".sampling_params": "SamplingParams BeamSearchParams StructuredOutputsParams "
    "RequestOutputKind RepetitionDetectionParams SamplingType GuidedDecodingParams",
    ".pooling_params": "PoolingParams LateChunkingParams",
    ".lora.request": "LoRARequest",
    ".inputs": "PromptType TextPrompt TokensPrompt EmbedsPrompt ExplicitEncoderDecoderPrompt "
    "DataPrompt SingletonPrompt",
    ".outputs": "RequestOutput CompletionOutput PoolingOutput PoolingRequestOutput "
    "EmbeddingRequestOutput ClassificationRequestOutput ScoringRequestOutput",
    ".logprobs": "Logprob FlatLogprobs PromptLogprobs SampleLogprobs",
    ".beam_search": "BeamSearchParams BeamSearchOutput BeamSearchSequence",
    ".engine.arg_utils": "EngineArgs AsyncEngineArgs",
    ".engine.async_llm_engine": "AsyncLLMEngine",
    ".engine.llm_engine": "LLMEngine",
    ".v1.engine.async_llm": "AsyncLLM AsyncLLMEngine",
    ".renderers.chat_utils": "load_chat_template ChatCompletionMessageParam",
    ".entrypoints.chat_utils": "load_chat_template ChatCompletionMessageParam",
    ".entrypoints.llm": "LLM",
    ".entrypoints.openai.api_server": "main",
    ".config": "VllmConfig CompilationConfig KVTransferConfig KVEventsConfig PoolerConfig "
    "StructuredOutputsConfig AttentionConfig ProfilerConfig ModelConfig",
    ".v1.sample.logits_processor": "LogitsProcessor BatchUpdate MoveDirectionality",
    ".v1.metrics.reader": "Metric Counter Gauge Histogram Vector",
    ".exceptions": "VLLMError VLLMClientError VLLMValidationError VLLMNotFoundError "
    "LoRAAdapterNotFoundError VLLMUnprocessableEntityError ChatTemplateResolutionError "
    "VLLMServerError GenerationError RetryableRequestError QueueOverflowError "
    "MaxQueuedTokensError ProfilerAlreadyActiveError",
    ".utils.argparse_utils": "FlexibleArgumentParser",
    ".utils": "FlexibleArgumentParser",
}


@pytest.mark.parametrize("path", PATHS)
def test_every_name_can_be_imported(path: str) -> None:
    module = importlib.import_module("octavo" + path)

    missing = [name for name in PATHS[path].split() if not hasattr(module, name)]
    assert missing == []


def test_names_of_the_top_package_are_listed_and_others_are_not_there() -> None:
    assert set(PATHS[""].split()) <= set(octavo.__all__) <= set(dir(octavo))
    assert octavo.__version_tuple__[:2] == tuple(map(int, octavo.__version__.split(".")[:2]))
    with pytest.raises(AttributeError, match="no attribute 'LLLM'"):
        _ = octavo.LLLM


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, octavo, octavo.sampling_params; print('torch' in sys.modules)"

    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert printed == "False\n"


def test_the_same_types_stand_behind_all_paths() -> None:
    from octavo.engine.async_llm_engine import AsyncLLMEngine
    from octavo.v1.engine.async_llm import AsyncLLM

    assert octavo.AsyncLLMEngine is AsyncLLMEngine is AsyncLLM
    assert issubclass(VLLMValidationError, ValueError)
    assert issubclass(VLLMValidationError, VLLMError)
    assert VLLMValidationError is ValidationError


# -- types without an engine ----------------------------------------------------------------------


def test_lora_requests_are_equal_by_name() -> None:
    one, same = LoRARequest("sql", 1, "/a"), LoRARequest("sql", 2, "/b")

    assert {one, same, LoRARequest("chat", 1, "/a")} == {one, LoRARequest("chat", 3, "/c")}
    assert (one.name, one.adapter_id, one.path) == ("sql", 1, "/a")
    assert one != "sql"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 0, "/a"), "lora_int_id must be at least 1, got 0"),
        (("a", True, "/a"), "lora_int_id must be an integer"),
        (("a", 1, ""), "lora_path must not be empty"),
    ],
)
def test_wrong_lora_request_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoRARequest(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "score"}, "task must be one of embed, classify, token_embed, token_classify"),
        ({"dimensions": 0}, "dimensions must be an integer of at least 1, got 0"),
        ({"output_kind": RequestOutputKind.DELTA}, "output_kind must stay FINAL_ONLY"),
        (
            {"task": "embed", "late_chunking_params": LateChunkingParams(8)},
            "late_chunking_params are for token_embed, not embed",
        ),
    ],
)
def test_wrong_pooling_params_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PoolingParams(**options)


def test_pooling_params_can_be_copied() -> None:
    params = PoolingParams(use_activation=False, dimensions=64)

    assert params.clone() == params
    assert params.clone() is not params


def test_request_outputs_have_the_fields_of_vllm_s_in_their_order() -> None:
    completion = octavo.CompletionOutput(0, "text", [1, 2], -0.5, [{1: Logprob(-0.5)}])
    output = octavo.RequestOutput("7", "prompt", [3], None, [completion], True)

    assert (output.outputs, output.finished, output.prompt_logprobs) == ([completion], True, None)
    for name in ("metrics", "lora_request", "encoder_prompt", "encoder_prompt_token_ids"):
        assert getattr(output, name) is None
    for name in ("num_cached_tokens", "num_cache_creation_tokens", "prompt_token_id_logprobs"):
        assert getattr(output, name) is None
    assert output.kv_transfer_params is output.ec_transfer_params is None
    for name in ("routed_experts", "sampling_mask", "spec_decode_metrics", "weight_versions"):
        assert getattr(completion, name) is None
    assert not completion.finished()
    assert pickle.loads(pickle.dumps(output)) == copy.deepcopy(output) == output


def test_fields_of_other_versions_are_ignored_in_outputs() -> None:
    later: dict[str, Any] = {"made_in_2030": 1}

    assert octavo.RequestOutput("7", None, [3], **later) == octavo.RequestOutput("7", None, [3])


def test_validation_errors_are_raised_as_in_vllm() -> None:
    error = VLLMValidationError("too hot", parameter="temperature", value=9)

    assert str(error) == "too hot (parameter=temperature, value=9)"
    assert (error.parameter, error.value) == ("temperature", 9)
    assert str(VLLMValidationError("bad", parameter="a")) == "bad"


def test_pooling_outputs_say_their_sizes() -> None:
    embedding = octavo.EmbeddingOutput([0.1, 0.2, 0.3])
    classes = octavo.ClassificationOutput([0.25, 0.75])
    result = octavo.EmbeddingRequestOutput("7", embedding, [1, 2])

    assert (embedding.hidden_size, classes.num_classes) == (3, 2)
    assert (result.request_id, result.outputs, result.finished) == ("7", embedding, True)
    assert isinstance(result, octavo.PoolingRequestOutput)


def test_guided_decoding_params_become_structured_outputs() -> None:
    with pytest.warns(DeprecationWarning, match="is now StructuredOutputsParams"):
        params = GuidedDecodingParams(choice=["a", "b"], backend="xgrammar")

    assert params == StructuredOutputsParams(choice=["a", "b"])


def test_former_sampling_keywords_are_translated_where_they_ask_for_nothing_else() -> None:
    choice = StructuredOutputsParams(choice=["a"])
    former: list[tuple[dict[str, Any], SamplingParams]] = [
        ({"guided_decoding": choice}, SamplingParams(structured_outputs=choice)),
        ({"guided_decoding": None}, SamplingParams()),
        ({"guided_choice": ["a"]}, SamplingParams(structured_outputs=choice)),
        ({"guided_json": None, "guided_decoding_backend": "xgrammar"}, SamplingParams()),
        ({"best_of": 2, "n": 2}, SamplingParams(n=2)),
        ({"use_beam_search": False}, SamplingParams()),
        ({"logits_processors": []}, SamplingParams()),
    ]
    for options, expected in former:
        with pytest.warns(DeprecationWarning, match="is now|any more"):
            assert SamplingParams(**options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 3}, "no best_of any more: ask for that many with n"),
        ({"use_beam_search": True}, "no use_beam_search any more: call LLM.beam_search"),
        ({"logits_processors": [print]}, "no logits_processors any more: give the engine classes"),
        ({"truncate_prompt_tokens": 5}, "no truncate_prompt_tokens any more: write generate"),
        (
            {"guided_regex": "a", "structured_outputs": StructuredOutputsParams(regex="b")},
            "guided_regex is the old form of structured_outputs: give only one",
        ),
        ({"guided_choice": []}, "structured_outputs: choice must be a non-empty list"),
    ],
)
def test_former_sampling_keyword_with_a_meaning_says_what_to_write(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingParams(**options)


def test_unknown_sampling_keyword_names_the_nearest() -> None:
    misspelt: dict[str, Any] = {"temprature": 0.5}

    with pytest.raises(TypeError, match=r"'temprature'; did you mean 'temperature'\?"):
        SamplingParams(**misspelt)


def test_parameters_travel_between_processes() -> None:
    params = SamplingParams(temperature=0.5, stop=["x"], structured_outputs=None)

    assert pickle.loads(pickle.dumps(params)) == params
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_ray_is_refused_with_what_there_is_instead() -> None:
    with pytest.raises(ValidationError, match=r"does not use Ray.+octavo up"):
        initialize_ray_cluster()


def test_model_registry_knows_and_takes_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo_runtime.models import registry

    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    assert "LlamaForCausalLM" in ModelRegistry.get_supported_archs()
    assert "MyForCausalLM" not in ModelRegistry.get_supported_archs()

    ModelRegistry.register_model("MyForCausalLM", "octavo_runtime.models.llama:LlamaForCausalLM")

    assert "MyForCausalLM" in ModelRegistry.get_supported_archs()


# -- the command line's helper --------------------------------------------------------------------


def test_parser_takes_underscores_and_leaves_values_alone() -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--served-model-name")

    args = parser.parse_args(["--max_model_len", "8", "--served_model_name=my_model"])

    assert (args.max_model_len, args.served_model_name) == (8, "my_model")


def test_parser_reads_a_file_below_the_command_line(tmp_path: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("max_model_len: 8\nseed: 3\nflag: true\nother: false\nnames: [a, b]\n")
    parser = FlexibleArgumentParser()
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--no-other", action="store_true")
    parser.add_argument("--names", nargs="+")

    args = parser.parse_args(["--seed", "4", "--config", str(file)])

    assert vars(args) == {
        "max_model_len": 8,
        "seed": 4,
        "flag": True,
        "no_other": True,
        "names": ["a", "b"],
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / "none.yaml")])


def test_former_server_module_is_octavo_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.cli import main as command
    from octavo.entrypoints.openai import api_server

    given: list[list[str]] = []
    monkeypatch.setattr(command, "main", given.append)

    with pytest.warns(DeprecationWarning, match="is now: octavo serve MODEL"):
        api_server.main(["--model", "smollm2", "--port", "8001"])

    assert given == [["serve", "--model", "smollm2", "--port", "8001"]]
