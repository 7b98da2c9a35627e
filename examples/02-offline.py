"""Generate in process, without any server: the offline API that vLLM users know.

Run: python examples/02-offline.py
"""

from octavo import LLM, SamplingParams

PROMPTS = ["The capital of France is", "The opposite of hot is"]


def main() -> None:
    llm = LLM("smollm2")

    for output in llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=16)):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")

    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    answer = llm.chat(conversation, SamplingParams(temperature=0, max_tokens=32))[0]
    print(answer.outputs[0].text)


if __name__ == "__main__":
    main()
