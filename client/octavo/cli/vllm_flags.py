"""Flags of `vllm serve` that Octavo does not have: what becomes of each.

One of three things: it is ignored with a warning, because it changes no result here; some of its
values are taken, because they ask for what is done anyway; or it is refused, with what to write
instead. The table is read from top to bottom as `flag[/alias]` with `=` for one value, `=*` for
several and `={}` for JSON.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from octavo.cli.arguments import Flag, Kind
from octavo.old_arguments import arguments_of_task
from octavo_protocol.errors import ValidationError

_ENDINGS: tuple[tuple[str, Kind], ...] = (("={}", "json"), ("=*", "many"), ("=", "one"))


@dataclass(frozen=True, slots=True)
class VllmFlag:
    """accepted: values that change nothing; None: any value is ignored, with a warning.

    is_former: it is not ignored: `heirs` says what it means today, and `reason` names that.
    """

    flag: Flag
    accepted: tuple[str, ...] | None
    reason: str
    is_former: bool = False


_IGNORED = {
    "it chooses between vLLM's kernels; results are the same without it": """
        --performance-mode= --attention-backend=
        --attention-config/-ac={} --moe-backend= --linear-backend= --optimization-level/-O=
        -O0 -O1 -O2 -O3 --disable-cascade-attn --enable-dbo --kernel-config={}""",
    "code from model repositories is never run, and no model here needs it": "--trust-remote-code",
    "prompts beyond --max-num-batched-tokens are always split": "--enable-chunked-prefill",
    "sequences that do not fit are recomputed, never swapped": "--swap-space=",
    "weights and KV blocks stay on the device": """
        --cpu-offload-gb= --offload-backend= --offload-group-size= --offload-num-in-group=
        --offload-prefetch-step= --offload-params=* --kv-offloading-size= --kv-offloading-backend=
        --calculate-kv-scales""",
    "loading is tuned by the loader itself": """
        --ignore-patterns=* --use-tqdm-on-load --safetensors-load-strategy= --pt-load-map-location=
        --max-parallel-loading-workers= --allow-deprecated-quantization""",
    "the scheduler here needs no such setting": """
        --async-scheduling --stream-interval= --watermark= --disable-hybrid-kv-cache-manager
        --disable-chunked-mm-input --prefix-caching-hash-algo= --prefix-match-unit=
        --max-num-partial-prefills= --max-long-partial-prefills= --scheduler-reserve-full-isl""",
    "it only concerns several devices or nodes": """
        --data-parallel-address/-dpa= --data-parallel-rpc-port/-dpp= --data-parallel-backend/-dpb=
        --data-parallel-start-rank/-dpr= --master-addr= --master-port= --device-ids=*
        --distributed-timeout-seconds= --disable-custom-all-reduce --numa-bind --all2all-backend=
        --eplb-config={} --enable-eplb --expert-placement-strategy= --enable-expert-parallel/-ep
        --enable-elastic-ep --dcp-kv-cache-interleave-size= --fully-sharded-loras""",
    "models here read text only": """
        --limit-mm-per-prompt={} --language-model-only --media-io-kwargs={}
        --mm-processor-kwargs={} --mm-processor-cache-gb= --mm-processor-cache-type=
        --mm-encoder-tp-mode= --skip-mm-profiling --interleave-mm-strings
        --allowed-local-media-path= --allowed-media-domains=* --trust-request-mm-kwargs
        --renderer-num-workers=""",
    "Mamba models are not served here": """
        --mamba-cache-dtype= --mamba-ssm-cache-dtype= --mamba-block-size= --mamba-cache-mode=""",
    "metrics are always there, at /metrics": """
        --disable-log-stats --kv-cache-metrics --kv-cache-metrics-sample= --cudagraph-metrics
        --enable-mfu-metrics --custom-histogram-buckets={} --enable-logging-iteration-details
        --per-request-spec-decode-metrics= --aggregate-engine-logging""",
    "--log-level says how much is logged": "--uvicorn-log-level=",
    "no server runs beside a batch": "--enable-metrics",
    "--show-old-metrics shows them": "--show-hidden-metrics-for-version=",
    "it is always so here": "--enable-request-id-headers --enable-prompt-tokens-details",
    "it belongs to vLLM's own process": """
        --fail-on-environ-validation --additional-config={} --sleep-mode-backend=
        --h11-max-incomplete-event-size= --h11-max-header-count= --enable-ssl-refresh
        --enable-offline-docs --log-error-stack --log-config-file= --logging-config=
        --shutdown-timeout= --enable-log-deltas""",
}
# flags -> (values that are taken, what to do instead of others)
_REFUSED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("--tokenizer-mode=", ("auto", "hf"), "tokenizers come as tokenizer.json: leave it out"),
    ("--skip-tokenizer-init", ("false",), "the API reads and writes text: leave it out"),
    ("--hf-token=", (), "set HF_TOKEN in the environment instead"),
    ("--hf-config-path= --config-format=", ("auto", "hf"), "config.json lies in MODEL's folder"),
    ("--code-revision=", (), "code from model repositories is never run: leave it out"),
    ("--download-dir=", (), "set OCTAVO_CACHE in the environment to the folder instead"),
    ("--model-loader-extra-config={}", ("{}",), "no loader here has settings: leave it out"),
    ("--model-impl=", ("auto", "vllm"), "models are Octavo's own: leave it out"),
    ("--io-processor-plugin= --scheduler-cls=", (), "there are no plugins for it: leave it out"),
    ("--worker-cls= --worker-extension-cls=", ("auto", ""), "there are no worker plugins"),
    ("--enable-prompt-embeds", ("false",), "prompts are text or token ids"),
    ("--enable-mm-embeds --mm-encoder-only", ("false",), "models here read text only"),
    ("--default-mm-loras={}", ("{}",), "models here read text only"),
    (
        "--quantization/-q= --quantization-config={}",
        ("none", "None", "gguf", "null"),
        "quantized weights are not served yet; a .gguf file as MODEL is converted to --dtype",
    ),
    ("--disable-sliding-window", ("false",), "leave it out, and set --max-model-len"),
    (
        "--speculative-config/-sc={} --spec-method= --spec-model= --spec-tokens=",
        ("null",),
        "speculative decoding is not there yet: leave it out",
    ),
    (
        "--pipeline-parallel-size/-pp= --nnodes= --decode-context-parallel-size/-dcp= "
        "--prefill-context-parallel-size/-pcp=",
        ("1",),
        "a replica is divided over the GPUs of one node alone, with --tensor-parallel-size; run "
        "more replicas with `octavo up` (spec.replicas)",
    ),
    (
        "--data-parallel-size/-dp= --data-parallel-size-local/-dpl= --api-server-count/-asc=",
        ("1",),
        "one replica is one process here; run more with `octavo up` (spec.replicas) or behind "
        "`octavo router`",
    ),
    ("--data-parallel-rank/-dpn= --node-rank=", ("0",), "one replica is one process here"),
    (
        "--data-parallel-hybrid-lb --data-parallel-external-lb "
        "--data-parallel-multi-port-external-lb --headless",
        ("false",),
        "`octavo router` balances the load between replicas",
    ),
    ("--distributed-executor-backend=", ("uni", "mp"), "one replica is one process here"),
    ("--kv-transfer-config={} --ec-transfer-config={}", ("null",), "blocks are not transferred"),
    ("--kv-events-config={}", ("null",), "cache events go to Redis: use --redis-url"),
    ("--weight-transfer-config={}", ("null",), "weights are not transferred"),
    ("--reasoning-config={} --watermark-config={}", ("null",), "it is not there yet: leave it out"),
    ("--reasoning-parser-plugin=", ("",), "use a parser of --reasoning-parser"),
    (
        "--enable-return-routed-experts --return-sampling-mask --enable-trace-replay",
        ("false",),
        "it is not there yet: leave it out",
    ),
    (
        "--collect-detailed-traces=*",
        (),
        "with --otlp-traces-endpoint alone, spans have queue, prefill and decode times",
    ),
    ("--tool-server=", (), "tools run at the client; leave it out"),
    ("--tool-strict-level= --reasoning-effort-map={}", (), "it is not there yet: leave it out"),
    ("--enable-per-request-metrics", ("false",), "use --enable-log-requests"),
    ("--tokens-only --enable-scale-out --grpc", ("false",), "it is not there yet: leave it out"),
    (
        "--max-num-queued-reqs= --max-num-queued-tokens=",
        (),
        "the queue has no limit; the router sends requests where they wait least",
    ),
    (
        "--guided-decoding-backend=",
        ("auto", "guidance"),
        "vLLM has removed it too; grammars are always enforced by llguidance",
    ),
)
# Flags that vLLM has removed -> what they are today
_FORMER = {"--task=": "--runner and --convert", "--override-pooler-config={}": "--pooler-config"}


def _flags(text: str) -> Iterator[Flag]:
    for word in text.split():
        kind: Kind = "switch"
        for ending, its_kind in _ENDINGS:
            if word.endswith(ending):
                word, kind = word.removesuffix(ending), its_kind
                break
        name, *aliases = word.split("/")
        yield Flag(name, kind, tuple(aliases), foreign=True)


def _table() -> dict[str, VllmFlag]:
    table = {
        flag.name: VllmFlag(flag, None, reason)
        for reason, text in _IGNORED.items()
        for flag in _flags(text)
    }
    for text, accepted, reason in _REFUSED:
        table |= {flag.name: VllmFlag(flag, accepted, reason) for flag in _flags(text)}
    for text, today in _FORMER.items():
        table |= {flag.name: VllmFlag(flag, None, today, is_former=True) for flag in _flags(text)}
    return table


VLLM_FLAGS = _table()


def notice(name: str, values: list[str]) -> str | None:
    """What to tell about a flag of the table: a warning, or None where it changes nothing.

    Raises `ValidationError` for what cannot be done, saying what to write instead.
    """
    entry = VLLM_FLAGS[name]
    if entry.is_former:
        return f"{name} is now {entry.reason}"
    if entry.accepted is None:
        return f"{name} has no effect: {entry.reason}"
    if all(value.strip('"') in entry.accepted for value in values):
        return None
    shown = name if entry.flag.kind == "switch" else f"{name} {' '.join(values)}"
    raise ValidationError(f"{shown} is not supported: {entry.reason}", parameter=name)


def heirs(name: str, values: list[str]) -> list[str]:
    """The words that a flag of the table stands for today. Raises `ValidationError`."""
    if name == "--task":
        return [f"--{key}={value}" for key, value in arguments_of_task(values[-1]).items()]
    if name == "--override-pooler-config":
        return [f"--pooler-config={value}" for value in values]
    return []
