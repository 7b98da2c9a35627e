"""`octavo bench serve`: load on a running server, with the flags of `vllm bench serve`."""

import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import bench_flags
from octavo.cli.bench_dataset import PARAMETERS, Workload
from octavo.cli.bench_flags import SAMPLING
from octavo_protocol.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from octavo.bench.online import StreamTimes, Target
    from octavo.bench.workload import BenchRequest
    from octavo_protocol.tokenizer import Tokenizer

_VOCAB_SIZE = 32_000


def serve(**flags: Any) -> None:
    """Send streaming requests to a running server and print its times.

    Results carry the keys of `vllm bench serve`, and the table has its lines.
    """
    import asyncio

    from octavo.bench.arrivals import Arrivals
    from octavo.bench.backends import BACKENDS
    from octavo.bench.report import table
    from octavo.bench.results import details, parse_goals, parse_metrics, parse_percents, summarise
    from octavo.bench.workload import with_adapters

    goals = parse_goals(flags["goodput"] or ())
    is_streamed = BACKENDS[flags["backend"]].is_streamed
    default_metrics = "ttft,tpot,itl" if is_streamed else "e2el"
    metrics = parse_metrics(flags["percentile_metrics"] or default_metrics)
    percents = parse_percents(flags["metric_percentiles"])
    arrivals = Arrivals(
        flags["request_rate"],
        flags["burstiness"],
        flags["ramp_up_strategy"],
        flags["ramp_up_start_rps"],
        flags["ramp_up_end_rps"],
    )
    metadata = _pairs("--metadata", flags["metadata"])
    tokenizer = _tokenizer(flags["tokenizer"])
    is_paced = flags["request_rate"] == float("inf") and flags["ramp_up_strategy"] is None
    workload = Workload(
        flags, flags["seed"], is_paced and flags["dataset_name"] in ("timed_trace", "burstgpt")
    )
    requests = workload.requests(
        tokenizer, flags["vocab_size"] or _vocab_size(tokenizer) or _VOCAB_SIZE
    )
    adapters = flags["lora_modules"] or ()
    requests = with_adapters(requests, adapters, flags["lora_assignment"], flags["seed"])
    target = _target(flags, tokenizer, is_endless=workload.is_synthetic)
    seconds, results = asyncio.run(_measure(target, requests, arrivals, flags))
    result = {
        **_settings(flags, target, metadata),
        **summarise(seconds, results, percents=percents, goals=goals),
    }
    print(table(result, metrics, percents))
    for error in sorted({times.error for times in results if times.error is not None}):
        print(f"octavo: {error}", file=sys.stderr)
    _save(result, details(results), flags)
    if not result["completed"]:
        raise UnavailableError("no request was answered")


async def _measure(
    target: "Target", requests: "Sequence[BenchRequest]", arrivals: Any, flags: Mapping[str, Any]
) -> "tuple[float, list[StreamTimes]]":
    from tqdm import tqdm

    from octavo.bench.online import run_load, wait_until_ready, warm_up

    if flags["ready_check_timeout_sec"]:
        await wait_until_ready(target, requests[0], flags["ready_check_timeout_sec"])
    await warm_up(target, requests[0], flags["num_warmups"])
    with tqdm(
        total=len(requests),
        desc="Requests",
        unit="req",
        file=sys.stderr,
        disable=flags["disable_tqdm"],
    ) as bar:
        return await run_load(
            target,
            requests,
            arrivals=arrivals,
            max_concurrency=flags["max_concurrency"],
            seed=flags["seed"],
            progress=bar.update,
        )


def _target(
    flags: Mapping[str, Any], tokenizer: "Tokenizer | None", *, is_endless: bool
) -> "Target":
    from octavo.bench.online import Target

    headers = _pairs("--header", flags["header"])
    if flags["api_key"]:
        headers["authorization"] = f"Bearer {flags['api_key']}"
    host = f"[{flags['host']}]" if ":" in flags["host"] else flags["host"]
    base_url = (flags["base_url"] or f"http://{host}:{flags['port']}").rstrip("/")
    base_url = base_url.removesuffix("/v1")
    return Target(
        base_url,
        flags["served_model_name"] or flags["model"] or _first_model(base_url, flags["api_key"]),
        flags["backend"],
        flags["endpoint"],
        headers,
        _sampling(flags, is_endless=is_endless) | (flags["extra_body"] or {}),
        tokenizer,
    )


def _sampling(flags: Mapping[str, Any], *, is_endless: bool) -> dict[str, Any]:
    """Fields of requests that generate."""
    from octavo.bench.backends import BACKENDS

    if not BACKENDS[flags["backend"]].is_streamed:
        return {}
    body = {name: flags[name] for name in SAMPLING if flags[name] is not None}
    body.setdefault("temperature", 0.0)
    if is_endless if flags["ignore_eos"] is None else flags["ignore_eos"]:
        body["ignore_eos"] = True
    return body


def _first_model(base_url: str, api_key: str | None) -> str:
    from octavo.cli.answering import connect, first_model

    client = connect(base_url, api_key)
    try:
        return first_model(client)
    finally:
        client.close()


def _tokenizer(name: str | None) -> "Tokenizer | None":
    if name is None:
        return None
    from octavo_protocol.tokenizer import Tokenizer
    from octavo_runtime.models.source import resolve_model

    return Tokenizer.from_folder(resolve_model(name))


def _vocab_size(tokenizer: "Tokenizer | None") -> int | None:
    if tokenizer is None:
        return None
    import tokenizers

    size: int = tokenizers.Tokenizer.from_str(tokenizer.bundle.tokenizer_json).get_vocab_size()
    return size


def _pairs(flag: str, words: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ConfigError(f"{flag} {word!r}: write KEY=VALUE")
        pairs[name] = value
    return pairs


def _settings(
    flags: Mapping[str, Any], target: "Target", metadata: Mapping[str, str]
) -> dict[str, Any]:
    rate = flags["request_rate"]
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": flags["backend"],
        "backend": flags["backend"],
        "label": flags["label"],
        "model_id": target.model,
        "tokenizer_id": flags["tokenizer"],
        "num_prompts": flags["num_prompts"],
        **({"lora_modules": flags["lora_modules"]} if flags["lora_modules"] else {}),
        **metadata,
        "request_rate": "inf" if rate == float("inf") else rate,
        "burstiness": flags["burstiness"],
        "max_concurrency": flags["max_concurrency"],
    }


def _save(result: dict[str, Any], more: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Writes the files that the flags ask for. Raises `ConfigError`."""
    try:
        if flags["output_json"] is not None:
            text = json.dumps(result | {"errors": sorted(set(more["errors"]) - {""})}, indent=2)
            flags["output_json"].write_text(text + "\n", encoding="utf-8")
        if not (flags["save_result"] or flags["append_result"]):
            return
        if flags["save_detailed"]:
            result = result | more
        path = _result_path(result, flags)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if flags["append_result"] else "w", encoding="utf-8") as file:
            file.write(json.dumps(result) + ("\n" if flags["append_result"] else ""))
    except OSError as error:
        raise ConfigError(f"cannot write the result: {error}") from error


def _result_path(result: Mapping[str, Any], flags: Mapping[str, Any]) -> Path:
    name = flags["result_filename"]
    if name is None:
        limit = flags["max_concurrency"]
        parts = [
            flags["label"] or flags["backend"],
            f"{flags['request_rate']}qps",
            *([f"concurrency{limit}"] if limit is not None else ()),
            str(result["model_id"]).split("/")[-1],
            result["date"],
        ]
        name = "-".join(parts) + ".json"
    return Path(flags["result_dir"] or ".", str(name))


serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
    [*bench_flags.PARAMETERS, *PARAMETERS]
)
