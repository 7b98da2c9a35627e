"""Several requests at a time, streamed, without a server: the engine that servers are made of.

Run: python examples/06-async-engine.py
"""

import asyncio

from octavo import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from octavo.sampling_params import RequestOutputKind

PROMPTS = ["The capital of France is", "The opposite of hot is", "Two plus two is"]


async def stream(engine: AsyncLLMEngine, number: int, prompt: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, output_kind=RequestOutputKind.DELTA)
    async for output in engine.generate(prompt, params, request_id=str(number)):
        print(f"{number}: {output.outputs[0].text!r}")


async def main() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="smollm2"))
    try:
        await asyncio.gather(*(stream(engine, i, prompt) for i, prompt in enumerate(PROMPTS)))
    finally:
        await engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
