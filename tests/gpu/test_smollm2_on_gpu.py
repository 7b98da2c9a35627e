"""A real model on the GPU: greedy fp32 output is Hugging Face's on the CPU, token for token."""

from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_greedy_equals_hugging_face import LIMIT, generate_all, request
from tests.e2e.test_greedy_equals_hugging_face import engine as new_core
from tests.e2e.test_greedy_equals_hugging_face import expected as expected
from tests.e2e.test_greedy_equals_hugging_face import prompts as prompts

from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore

pytestmark = [pytest.mark.gpu, pytest.mark.model]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enforce_eager": True, "enable_prefix_caching": False},
        {"max_num_seqs": 16, "max_num_batched_tokens": 64},
        {"max_num_batched_tokens": 8192, "block_size": 32},
    ],
    ids=["defaults", "eager-uncached", "small-batches", "whole-prompts"],
)
def test_greedy_output_is_that_of_the_cpu(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]], options: dict[str, Any]
) -> None:
    core = new_core(smollm2, device="cuda", **options)
    assert generate_all(core, prompts) == expected
    assert generate_all(core, prompts) == expected  # from the prefix cache
    core.shutdown()


def test_bf16_logprobs_stay_near_fp32(smollm2: Path, prompts: list[list[int]]) -> None:
    """As on the CPU: over 30 layers a log-probability near the top moves by less than 0.35."""
    chosen = [prompts[i] for i in (1, 32, 40, -5)]
    found = []
    for dtype in ("float32", "bfloat16"):
        core = EngineCore(
            EngineConfig(model=smollm2, device="cuda", dtype=dtype, max_model_len=LIMIT)
        )
        for i, prompt in enumerate(chosen):
            core.add_request(request(str(i), prompt, max_tokens=1, logprobs=10))
        rows: dict[str, dict[int, float]] = {}
        while core.has_work():
            for output in core.step().outputs:
                [row] = output.new_logprobs or []
                rows[output.request_id] = dict(zip(row.token_ids, row.logprobs, strict=True))
        core.shutdown()
        found.append(rows)
    worst = 0.0
    for name, full in found[0].items():
        shared = full.keys() & found[1][name].keys()
        assert len(shared) >= 8
        worst = max(worst, *(abs(full[token] - found[1][name][token]) for token in shared))
    print(f"worst bf16 log-probability: {worst:.4f}")
    assert worst < 0.35
