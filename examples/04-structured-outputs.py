"""Outputs of a given shape: one of some words, text of a pattern, JSON of a schema.

Run: python examples/04-structured-outputs.py
"""

import json

from octavo import LLM, SamplingParams
from octavo.sampling_params import StructuredOutputsParams

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}


def main() -> None:
    llm = LLM("smollm2")

    def ask(question: str, shape: StructuredOutputsParams) -> str:
        params = SamplingParams(temperature=0, max_tokens=64, structured_outputs=shape)
        conversation = [{"role": "user", "content": question}]
        return llm.chat(conversation, params, use_tqdm=False)[0].outputs[0].text

    words = StructuredOutputsParams(choice=["positive", "negative"])
    print(ask("Is 'I love this film' positive or negative?", words))

    year = StructuredOutputsParams(regex="(19|20)[0-9]{2}")
    print(ask("In which year did the Berlin Wall fall?", year))

    city = StructuredOutputsParams(json=CITY)
    print(json.loads(ask("Tell me about Paris, as JSON.", city)))


if __name__ == "__main__":
    main()
