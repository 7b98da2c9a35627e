"""`octavo replay`: a trace of block hashes, sent to a real server or router."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from octavo.cli.answering import DEFAULT_URL, ApiKey, Model, Url, connect, first_model
from octavo.cli.options import option
from octavo.cli.trace_options import BlockSize, Limit, Speed, Trace
from octavo_protocol.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from octavo.bench.online import StreamTimes, Target
    from octavo.replay.prompts import PromptMaker
    from octavo.replay.report import ReplayReport
    from octavo.sim.trace import TraceRequest


def replay(
    *,
    trace: Trace,
    url: Url = DEFAULT_URL,
    model: Model = None,
    api_key: ApiKey = None,
    speed: Speed = 1.0,
    limit: Limit = None,
    block_size: BlockSize = None,
    max_concurrency: Annotated[
        int | None,
        option("--max-concurrency", help="Most requests at once; others wait.", min=1),
    ] = None,
    vocab_size: Annotated[
        int,
        option("--vocab-size", help="The model's vocabulary: prompts are random tokens.", min=2),
    ] = 32_000,
    seed: Annotated[int, option("--seed", help="Of the tokens of the prompts.")] = 0,
    output_json: Annotated[
        Path | None, option("--output-json", help="File for the figures.", show_default=False)
    ] = None,
) -> None:
    """Send a trace to a real server: prompts that share prefixes as the trace says, at its times.

    A trace has no text. Each of its block ids becomes the same random tokens wherever it appears,
    so that caches are hit as they were. Prints times to the first token and per token, cached
    tokens and errors. `octavo sim` plays the same trace without a server; `octavo router --capture`
    writes one.
    """
    import asyncio

    from octavo.replay.prompts import PromptMaker
    from octavo.replay.report import report
    from octavo.sim.trace import load_trace

    requests, block_size = load_trace(trace, block_size=block_size, speed=speed, limit=limit)
    target = _target(url, model, api_key)
    prompts = PromptMaker(block_size, vocab_size, seed)
    seconds, results = asyncio.run(_play(target, requests, prompts, max_concurrency))
    summed = report(seconds, results)
    _print(summed)
    for error in sorted({times.error for times in results if times.error is not None})[:10]:
        print(f"octavo: {error}", file=sys.stderr)
    if output_json is not None:
        _write(summed, output_json)
    if summed.num_errors == summed.num_requests:
        raise UnavailableError("no request was answered")


async def _play(
    target: "Target",
    requests: "list[TraceRequest]",
    prompts: "PromptMaker",
    max_concurrency: int | None,
) -> "tuple[float, list[StreamTimes]]":
    from tqdm import tqdm

    from octavo.replay.player import play

    with tqdm(total=len(requests), desc="Requests", unit="req", file=sys.stderr) as bar:
        return await play(
            target, requests, prompts, max_concurrency=max_concurrency, progress=bar.update
        )


def _target(url: str, model: str | None, api_key: str | None) -> "Target":
    from octavo.bench.online import Target

    base_url = url.rstrip("/").removesuffix("/v1")
    if model is None:
        client = connect(base_url, api_key)
        try:
            model = first_model(client)
        finally:
            client.close()
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    # Random tokens may end in an end token at once; the trace says how long answers are.
    return Target(base_url, model, headers=headers, body={"temperature": 0.0, "ignore_eos": True})


def _print(result: "ReplayReport") -> None:
    print(
        f"{result.num_requests} requests in {result.seconds:.1f} s, {result.num_errors} failed\n"
        f"TTFT   mean {result.ttft_mean_s:.3f} s  p50 {result.ttft_p50_s:.3f}  "
        f"p90 {result.ttft_p90_s:.3f}  p99 {result.ttft_p99_s:.3f}\n"
        f"TPOT   mean {result.tpot_mean_s * 1000:.1f} ms  p50 {result.tpot_p50_s * 1000:.1f}  "
        f"p99 {result.tpot_p99_s * 1000:.1f}\n"
        f"cached {result.cached_tokens} of {result.prompt_tokens} prompt tokens "
        f"({result.cached_share:.1%}); {result.output_tokens} tokens generated"
    )


def _write(result: "ReplayReport", path: Path) -> None:
    figures = {**dataclasses.asdict(result), "cached_share": result.cached_share}
    try:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
