"""Router and a real server agree on adapters: names, loads, versions, cached blocks, errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from tests.fakes.lora_adapters import write_adapter
from tests.fakes.router_cluster import RouterCluster, RunningRouter, running_router, until
from tests.fakes.tiny_model import write_tiny_model

from octavo.local.ports import free_port
from octavo_operator.adapters_client import AdaptersClient
from octavo_operator.desired import AdapterAction
from octavo_operator.queue import Key
from octavo_protocol.keys import DEPLOYMENTS, deployment_field
from octavo_protocol.records import AdapterSource, DeploymentRecord, ReplicaRecord, encode
from octavo_protocol.resources.model_source import ModelSource

pytestmark = pytest.mark.integration

PROMPT = "the quick brown fox jumps over the lazy dog " * 4


@contextmanager
def serving(folder: Path, redis_url: str) -> Iterator[None]:
    """A server of a tiny model that holds two adapters at a time."""
    flags = (
        f"--port {free_port()} --host 127.0.0.1 --load-format dummy --dtype float32 --block-size 16"
        " --enable-lora --max-loras 1 --max-cpu-loras 2 --allow-runtime-lora-updating"
        f" --num-gpu-blocks-override 256 --served-model-name base --redis-url {redis_url}"
        " --namespace n --deployment base --enable-prompt-tokens-details"
    )
    command = [sys.executable, "-m", "octavo", "serve", str(folder / "tiny"), *flags.split()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def ask(router: RunningRouter, model: str) -> tuple[str, int, int]:
    """(text, tokens predicted as cached, tokens that were)."""
    status, body, route = await router.completion(
        PROMPT, model=model, max_tokens=6, temperature=0, ignore_eos=True
    )
    assert status == 200, body
    predicted = dict(part.split("=") for part in route.split(";"))["cached"]
    actual = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return body["choices"][0]["text"], int(predicted), actual


async def test_loads_evictions_updates_and_predictions_agree_with_a_real_server(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    for seed, name in enumerate(("a", "b", "c", "a2"), 1):
        write_adapter(tmp_path / name, model, seed=seed, scale=4.0)
    write_adapter(tmp_path / "large", model, seed=9, rank=64)
    names = ("a", "b", "c", "large")
    sources = [AdapterSource(name, f"file://{tmp_path / name}", on_demand=True) for name in names]
    record = DeploymentRecord("n", "base", ["base"], "expected-ttft", 1.0, sources)
    async with redis.asyncio.Redis.from_url(cluster.redis.url) as client:
        fields = {deployment_field("n", "base"): encode(record)}
        await client.hset(DEPLOYMENTS, mapping=cast(dict[Any, Any], fields))
    with serving(tmp_path, cluster.redis.url):
        opened = running_router(redis_url=cluster.redis.url, all_deployments=True)
        router = await cluster.stack.enter_async_context(opened)
        await until(lambda: router.state.deployments.is_ready("a"), seconds=90)

        def told() -> ReplicaRecord:
            [found] = router.deployment.replicas.records
            return found

        first = {name: await ask(router, name) for name in ("base", "a", "b", "c")}
        assert [cached for _, *cached in first.values()] == [[0, 0]] * 4
        assert len({text for text, *_ in first.values()}) == 4
        await until(lambda: told().adapters == ["a", "b", "c"])
        assert (told().loaded_adapters, told().max_adapters) == (["b", "c"], 2)

        await until(lambda: router.deployment.index.num_entries >= 4)
        for name, (text, *_) in first.items():  # `a` was evicted, and is loaded again
            again, predicted, actual = await ask(router, name)
            assert again == text
            assert predicted == actual > 0

        status, body, _ = await router.completion(PROMPT, model="large")
        assert (status, body["error"]["code"]) == (503, "adapter_not_loaded")
        assert "rank" in body["error"]["message"]
        await until(lambda: "large" in told().adapter_errors)
        assert told().adapter_errors["large"].origin == sources[3].origin

        former = told().adapter_versions["a"]
        async with AdaptersClient(lambda *_: None) as operator:
            source = ModelSource(source=f"file://{tmp_path / 'a2'}")
            action = AdapterAction(told().replica_id, told().url, "a", source, in_place=True)
            operator.ask(Key("n", "base"), [action])
            await until(lambda: told().adapter_versions["a"] != former)
        assert told().adapter_sources["a"] == source.source
        text, *cached = await ask(router, "a")
        assert cached == [0, 0]
        assert text not in {text for text, *_ in first.values()}
