"""What a replica's API offers and how its answers look. Names are vLLM's where vLLM has one."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from octavo_protocol.errors import ConfigError
from octavo_protocol.structured_outputs import StructuredOutputsParams

MetricsNames = Literal["both", "octavo", "vllm"]
FingerprintMode = Literal["full", "hash", "custom", "none"]


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false")


@dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """Settings of the routes of one replica.

    Prompts and tools
        trust_request_chat_template: requests may bring a template of their own.
        default_chat_template_kwargs: variables of the template that requests may override.
        chat_template_content_format: how the template reads a message's content.
        tool_call_parser, enable_auto_tool_choice: what finds tool calls in an answer; both are
            needed for tool_choice auto.
        tool_parser_plugin: Python file that registers further tool parsers.
        exclude_tools_when_tool_choice_none: with tool_choice none, the prompt has no tools.
        reasoning_parser: what splits reasoning from the answer.
        override_max_tokens: no answer gets more tokens than this.
        structured_outputs_config: `disable_any_whitespace` and `disable_additional_properties`:
            true holds for the constraints of every request.
    Answers
        response_role: role of the messages. reasoning_content_field: `reasoning` is repeated under
            its older name `reasoning_content`.
        fingerprint_mode, fingerprint_value: `system_fingerprint`; full: version, model and
            number format; hash: a digest of that; custom: the value.
        sse_keep_alive_interval: seconds after which a silent stream gets a comment; 0: never.
    Operation
        enable_log_requests: one line per finished request, with counts and times.
            enable_log_outputs: also its prompt's and outputs' text, cut to max_log_len characters.
        metrics_names: under which prefixes metrics are shown. show_old_metrics: also under names
            that vLLM has removed, which some dashboards still read.
        dev_mode: routes that stop, empty and inspect the engine exist.
        allow_runtime_lora_updating: routes that load and unload adapters exist.
    """

    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_request_chat_template: bool = False
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    tool_parser_plugin: str | None = None
    exclude_tools_when_tool_choice_none: bool = False
    reasoning_parser: str | None = None
    override_max_tokens: int | None = None
    structured_outputs_config: dict[str, Any] = field(default_factory=dict)
    response_role: str = "assistant"
    reasoning_content_field: bool = False
    return_tokens_as_token_ids: bool = False
    enable_force_include_usage: bool = False
    fingerprint_mode: FingerprintMode = "full"
    fingerprint_value: str | None = None
    sse_keep_alive_interval: float = 0.0
    enable_log_requests: bool = False
    enable_log_outputs: bool = False
    max_log_len: int | None = None
    enable_server_load_tracking: bool = False
    enable_tokenizer_info_endpoint: bool = False
    metrics_names: MetricsNames = "both"
    show_old_metrics: bool = False
    dev_mode: bool = field(default_factory=lambda: _is_set("VLLM_SERVER_DEV_MODE"))
    allow_runtime_lora_updating: bool = field(
        default_factory=lambda: _is_set("VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    )
    skip_model_name_validation: bool = field(
        default_factory=lambda: _is_set("VLLM_SKIP_MODEL_NAME_VALIDATION")
    )

    def __post_init__(self) -> None:
        """Raises `ConfigError` for options that contradict each other."""
        if self.enable_auto_tool_choice and not self.tool_call_parser:
            raise ConfigError("--enable-auto-tool-choice needs --tool-call-parser")
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ConfigError("--enable-log-outputs needs --enable-log-requests")
        if self.fingerprint_mode == "custom" and not self.fingerprint_value:
            raise ConfigError("--fingerprint-mode custom needs --fingerprint-value")

    def constraint(self, of_request: StructuredOutputsParams) -> StructuredOutputsParams:
        """`of_request`, and what `structured_outputs_config` asks of all."""
        names = ("disable_any_whitespace", "disable_additional_properties")
        wanted = {name: True for name in names if self.structured_outputs_config.get(name)}
        return msgspec.structs.replace(of_request, **wanted)
