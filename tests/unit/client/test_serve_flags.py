"""`octavo serve` knows every flag of `vllm serve`: as its own, ignored, or refused with advice."""

import dataclasses
import re
from pathlib import Path

import pytest
import typer.main
from tests.unit.client.test_cli import Recorded, model, recorded, run

from octavo.cli.environment import VARIABLES, defaults_from_vllm, warnings_about
from octavo.cli.main import app
from octavo.cli.serve_flags import GROUPS, RENAMED
from octavo.cli.vllm_flags import VLLM_FLAGS, notice
from octavo.engine.arg_utils import EngineArgs
from octavo_protocol.errors import ConfigError, ValidationError
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.limits import limit
from octavo_runtime.config import EngineConfig, LoRAConfig, PoolerConfig
from octavo_runtime.server.lora_modules import LoRAModule
from octavo_runtime.server.options import ApiOptions

__all__ = ["model", "recorded"]

OWN = {flag.name for flags in GROUPS.values() for flag in flags}
COUNTING = {name for name, each in VARIABLES.items() if each.effect is not None}
FIELDS = {RENAMED.get(name, name) for name in OWN}
REPOSITORY = Path(__file__).parents[3]
_NOT_FOR_SERVERS = ("model", "skip_tokenizer_init")


@pytest.mark.parametrize("options", [ApiOptions, HttpOptions])
def test_every_option_of_the_server_has_a_flag(options: type) -> None:
    fields = {each.name for each in dataclasses.fields(options)}
    assert fields <= FIELDS


@pytest.mark.parametrize(
    "name",
    [each.name for each in dataclasses.fields(EngineArgs) if each.name not in _NOT_FOR_SERVERS],
)
def test_every_engine_argument_is_a_flag_or_has_an_answer(name: str) -> None:
    assert name in FIELDS or "--" + name.replace("_", "-") in VLLM_FLAGS


@pytest.mark.parametrize(
    "each",
    [each for each in dataclasses.fields(EngineArgs) if each.metadata.get("kind") == "missing"],
    ids=lambda each: each.name,
)
def test_defaults_of_vllm_are_taken(each: "dataclasses.Field[object]") -> None:
    default = each.default
    if default is dataclasses.MISSING or default is None or default == "":
        return
    assert notice("--" + each.name.replace("_", "-"), [str(default).lower()]) is None


def test_no_flag_is_both_owned_and_foreign() -> None:
    assert not {"--" + name.replace("_", "-") for name in OWN} & set(VLLM_FLAGS)


def test_an_ignored_flag_says_why() -> None:
    assert notice("--swap-space", ["4"]) == (
        "--swap-space has no effect: sequences that do not fit are recomputed, never swapped"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--task embed", ("pooling", "embed", PoolerConfig())),
        ("--task score", ("pooling", "auto", PoolerConfig())),
        ("--task classify --convert embed", ("pooling", "embed", PoolerConfig())),
        ("--task generate", ("generate", "auto", PoolerConfig())),
        (
            "--runner pooling --pooler-config.pooling_type MEAN",
            ("pooling", "auto", PoolerConfig(pooling_type="MEAN")),
        ),
    ],
)
def test_what_a_model_is_for_in_old_and_new_words(
    recorded: Recorded, model: str, words: str, expected: tuple[str, str, PoolerConfig]
) -> None:
    assert run("serve", model, *words.split()) == 0

    engine = recorded.options.engine
    assert (engine.runner, engine.convert, engine.pooler_config) == expected


def test_a_former_flag_says_what_it_is_called_now(
    recorded: Recorded, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", model, "--override-pooler-config", '{"use_activation": false}') == 0

    assert recorded.options.engine.pooler_config == PoolerConfig(use_activation=False)
    warning = "octavo: warning: --override-pooler-config is now --pooler-config"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("--code-revision", ["main"], "code from model repositories is never run"),
        ("--pipeline-parallel-size", ["2"], "with --tensor-parallel-size"),
        ("--speculative-config", ['{"method": "ngram"}'], "speculative decoding is not there yet"),
        ("--quantization", ["awq"], "quantized weights are not served yet"),
        ("--skip-tokenizer-init", ["true"], "the API reads and writes text"),
    ],
)
def test_a_refused_flag_says_what_to_do(name: str, values: list[str], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        notice(name, values)
    assert message in raised.value.message


def test_vllms_way_of_writing_flags(
    recorded: Recorded, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--max_model_len auto -tp 1 --swap-space 4 --attention-backend FLASH_ATTN "
        "--disable-log-requests --enable-auto-tool-choice --tool_call_parser hermes "
        "--override-generation-config.temperature 0.5 --api-key a b --trust-remote-code "
        "--default-chat-template-kwargs.enable_thinking false --disable-prefix-caching"
    )
    assert run("serve", model, *flags.split()) == 0
    options = recorded.options
    assert options.engine.max_model_len == -1
    assert options.engine.enable_prefix_caching is False
    assert options.api_key == ("a", "b")
    assert (options.tool_call_parser, options.enable_auto_tool_choice) == ("hermes", True)
    assert options.default_sampling_params.temperature == 0.5
    assert options.default_chat_template_kwargs == {"enable_thinking": False}
    assert options.enable_log_requests is False
    warnings = capsys.readouterr().err.splitlines()
    assert [re.findall(r"--[a-z-]+", each)[0] for each in warnings] == [
        "--swap-space",
        "--attention-backend",
        "--trust-remote-code",
    ]


def test_what_sizes_memory_and_graphs_on_a_gpu_reaches_the_engine(
    recorded: Recorded, model: str
) -> None:
    flags = (
        "--device cuda --device-memory-utilization 0.5 --cudagraph-capture-sizes 1 8 "
        "--max-cudagraph-capture-size 4 --enforce-eager --logits-processors a:B"
    )
    assert run("serve", model, *flags.split()) == 0
    assert recorded.options.engine == EngineConfig(
        model=Path(model),
        device="cuda",
        gpu_memory_utilization=0.5,
        cuda_graph_sizes=(1, 8),
        max_cuda_graph_size=4,
        enforce_eager=True,
        logits_processors=("a:B",),
    )

    flags = "-cc.cudagraph_capture_sizes+ 2 -cc.cudagraph_mode NONE -cc.mode 3"
    assert run("serve", model, *flags.split(), "--gpu-memory-utilization", "1") == 0
    engine = recorded.options.engine
    assert (engine.cuda_graph_sizes, engine.enforce_eager) == ((2,), True)
    assert engine.gpu_memory_utilization == 1.0


def test_structured_outputs_config_reaches_the_server(recorded: Recorded, model: str) -> None:
    flags = (
        "--structured-outputs-config.disable_any_whitespace true "
        "--structured-outputs-config.reasoning_parser qwen3"
    )
    assert run("serve", model, *flags.split()) == 0
    assert recorded.options.structured_outputs_config["disable_any_whitespace"] is True
    assert recorded.options.reasoning_parser == "qwen3"


def test_constraints_inside_reasoning_are_refused(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", model, "--structured-outputs-config.enable_in_reasoning", "true") == 2
    assert "constraints begin where reasoning ends" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "cap"),
    [
        ([], None),
        (["--override-max-tokens", "9"], 9),
        (["--override-generation-config.max_new_tokens", "5"], 5),
        (
            ["--override-generation-config.max_new_tokens", "5", "--override-max-tokens", "9"],
            5,
        ),
    ],
)
def test_max_new_tokens_that_the_operator_sets_is_a_limit(
    recorded: Recorded, model: str, flags: list[str], cap: int | None
) -> None:
    assert run("serve", model, *flags) == 0
    assert recorded.options.override_max_tokens == cap


def test_a_file_gives_flags_and_the_command_line_wins(
    recorded: Recorded, model: str, tmp_path: Path
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        f"model: {model}\nport: 8001\nmax_model_len: 4k\nserved-model-name: [a, b]\n"
        "allowed-origins: [http://x]\noverride-generation-config: {temperature: 0.1}\n"
        "enable-prefix-caching: false\n"
    )
    assert run("serve", "--config", str(path), "--port", "8002", "--served-model-name", "c") == 0
    options = recorded.options
    assert (options.model, options.port, options.served_names) == (Path(model), 8002, ("c",))
    assert options.engine.max_model_len == 4000
    assert options.engine.enable_prefix_caching is False
    assert options.allowed_origins == ("http://x",)
    assert options.default_sampling_params.temperature == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modellen: 3", "max-modellen: there is no flag --max-modellen; did you mean"),
        ("port: many", "port: Input should be a valid integer"),
        ("task: dream", "task='dream' is not known; it was one of auto, generate, embed"),
    ],
)
def test_a_file_with_a_mistake_is_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text + "\n")
    assert run("serve", model, "--config", str(path)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


@pytest.mark.parametrize("word", ["cache", "Cache", "prefix_caching", "all"])
def test_help_can_be_asked_for_by_word(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", f"--help={word}") == 0
    output = capsys.readouterr().out
    assert "--enable-prefix-caching" in output
    assert ("--port" in output) == (word == "all")


def test_help_of_an_unknown_word_names_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--help=zzz") == 2
    assert "groups are Model, Load, Parallel, Cache" in capsys.readouterr().err


def test_help_shows_every_group_and_every_flag() -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    text = command.get_help(command.make_context("serve", ["m"], resilient_parsing=True))
    assert all(f"{group}:" in text for group in GROUPS)
    assert all("--" + name.replace("_", "-") in text for name in OWN)


def test_variables_of_vllm_count(
    recorded: Recorded, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARN")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    assert run("serve", model) == 0
    options = recorded.options
    assert (options.api_key, options.log_level) == (("secret",), "warning")
    assert options.engine.kv_cache_memory_bytes == 2**30
    assert options.dev_mode is True
    assert options.allow_runtime_lora_updating is True


def test_flags_and_our_variables_go_before_vllms(
    recorded: Recorded, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "error")
    assert run("serve", model, "--api-key", "b") == 0
    assert (recorded.options.api_key, recorded.options.log_level) == (("b",), "error")


def test_variables_that_do_nothing_are_told() -> None:
    environ = {"VLLM_USE_V1": "1", "VLLM_API_KEYS": "x", "VLLM_API_KEY": "x", "HOME": "/"}
    assert warnings_about(environ) == [
        "there is no variable VLLM_API_KEYS; did you mean VLLM_API_KEY?",
        "VLLM_USE_V1 has no effect: it chooses between parts of vLLM",
    ]


def test_a_cache_size_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="VLLM_CPU_KVCACHE_SPACE must be a number of GiB"):
        defaults_from_vllm({"VLLM_CPU_KVCACHE_SPACE": "lots"})


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", value)
    with pytest.raises(ConfigError, match="VLLM_MAX_STOP_STRINGS must be a positive whole number"):
        limit("VLLM_MAX_STOP_STRINGS", 4)
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", " 8 ")
    assert limit("VLLM_MAX_STOP_STRINGS", 4) == 8


def test_the_documents_list_the_variables_that_count() -> None:
    text = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(VLLM_[A-Z_]+)`", text)) >= COUNTING


def test_every_variable_that_is_read_is_said_to_count() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for part in ("protocol", "router", "runtime")
        for path in (REPOSITORY / part).rglob("*.py")
    ]
    read = {name for text in sources for name in re.findall(r'"(VLLM_[A-Z_]+)"', text)}
    assert read <= COUNTING


def test_adapters_are_asked_for_as_for_vllm(recorded: Recorded, model: str) -> None:
    flags = (
        "--enable-lora --max-loras 4 --max-lora-rank 64 --max-cpu-loras 8 --lora-dtype half "
        "--lora-target-modules q_proj v_proj --allow-runtime-lora-updating --fully-sharded-loras"
    )
    modules = ["a=/x=y", '{"name": "b", "path": "org/b", "base_model_name": "base"}']
    assert run("serve", model, *flags.split(), "--lora-modules", *modules) == 0
    options = recorded.options
    assert options.engine.lora == LoRAConfig(
        max_loras=4,
        max_lora_rank=64,
        max_cpu_loras=8,
        lora_dtype="float16",
        target_modules=("q_proj", "v_proj"),
    )
    assert options.lora_modules == (LoRAModule("a", "/x=y"), LoRAModule("b", "org/b", "base"))
    assert options.allow_runtime_lora_updating is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-modules", "a=/x"], "--lora-modules needs --enable-lora"),
        (["--enable-lora", "--lora-modules", "a"], "write name=path, or JSON"),
        (["--enable-lora", "--lora-modules", '{"name": "a"}'], "missing required field `path`"),
        (["--enable-lora", "--max-lora-rank", "17"], "max_lora_rank must be one of 1, 8, 16"),
        (["--enable-lora", "--max-loras", "3", "--max-cpu-loras", "2"], "at least max_loras=3"),
    ],
)
def test_adapters_that_cannot_be_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run("serve", model, *flags) == 2
    assert message in capsys.readouterr().err
