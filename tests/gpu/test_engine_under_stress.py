"""Requests of all kinds come, go and are aborted at random; what stays is right all the same."""

import random
from typing import Any

import pytest
import torch
from tests.gpu.conftest import PROMPT, NewEngine, TinyModel

from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams

pytestmark = pytest.mark.gpu

_TEXT = PROMPT + PROMPT[::-1]
_KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 1.0, "seed": 3, "top_k": 20},
    {"temperature": 0.8, "n": 2, "seed": 4},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.0, "prompt_logprobs": 1},
]


@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_events_changes_greedy_outputs(
    tiny: TinyModel, new_engine: NewEngine, seed: int
) -> None:
    dice = random.Random(seed)
    llm = new_engine(
        num_gpu_blocks_override=dice.choice([9, 20, 64]),
        max_num_seqs=dice.choice([2, 5, 11]),
        max_num_batched_tokens=dice.choice([16, 40, 512]),
        long_prefill_token_threshold=dice.choice([0, 1, 7]),
        enforce_eager=seed == 3,
    )
    greedy: dict[str, list[int]] = {}
    alive: dict[str, int] = {}
    done: dict[str, list[int]] = {}
    for event in range(400):
        if event < 250 and dice.random() < 0.4 and len(alive) < 20:
            name = str(dice.randrange(60))  # ids come again
            if name not in alive:
                start, length = dice.randrange(30), dice.choice([1, 2, 16, 17, 33, 60])
                params = dice.choice(_KINDS) | {"max_tokens": dice.choice([1, 2, 9, 30])}
                prompt = _TEXT[start : start + length]
                kind = RequestOutputKind.FINAL_ONLY
                sampling = SamplingParams(ignore_eos=True, output_kind=kind, **params)
                llm.add_request(name, prompt, sampling)
                alive[name] = params["max_tokens"]
                done.pop(name, None)
                greedy.pop(name, None)
                if params["temperature"] == 0.0 and "repetition_penalty" not in params:
                    greedy[name] = prompt
        if alive and dice.random() < 0.05:
            name = dice.choice(list(alive))
            llm.abort_request([name])
            del alive[name]
            greedy.pop(name, None)
        if dice.random() < 0.03:
            llm.reset_prefix_cache(reset_running_requests=dice.random() < 0.5)
        if dice.random() < 0.02:
            torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        for output in llm.step() if llm.has_unfinished_requests() else []:
            done[output.request_id] = list(output.outputs[0].token_ids)
            assert len(done[output.request_id]) == alive.pop(output.request_id)
        llm.core.scheduler.check()
    while llm.has_unfinished_requests():
        for output in llm.step():
            done[output.request_id] = list(output.outputs[0].token_ids)
            assert len(done[output.request_id]) == alive.pop(output.request_id)

    assert not alive
    assert len(greedy) > 10
    for name, prompt in greedy.items():
        tiny.check_greedy(prompt, done[name])
    assert llm.core.scheduler.pool.num_free == llm.core.scheduler.pool.num_blocks
