"""vLLM's embeddings for `benchmarks.pooling`, in a process and an environment of its own.

    PYTHON -m benchmarks.vllm_embeddings MODEL_FOLDER DTYPE

PYTHON is an interpreter that has vllm; of this repository nothing is imported. A line of JSON with
`texts` on standard input is answered by one with `seconds` and, where `vectors` was asked for, the
vectors. The first line out tells vLLM's version, once the model is loaded.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    folder, dtype = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints
    import vllm

    # On a CPU the share is of the host's memory, and all of it must be free at the start.
    model: Any = vllm.LLM(
        model=folder, runner="pooling", dtype=dtype, seed=0, gpu_memory_utilization=0.2
    )

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({"version": vllm.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        outputs = model.embed(
            asked["texts"], use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1}
        )
        seconds = time.perf_counter() - started
        vectors = [each.outputs.embedding for each in outputs] if asked.get("vectors") else None
        answer({"seconds": seconds, "vectors": vectors})


if __name__ == "__main__":
    main()
