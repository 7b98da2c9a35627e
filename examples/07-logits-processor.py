"""A rule of your own over every token: here, no token is said twice in a row.

Run: python examples/07-logits-processor.py
"""

from typing import Any

import torch

from octavo import LLM, SamplingParams


class NoStutter:
    """Told how the batch changes; then gets the logits, [batch size, vocabulary]."""

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        self.outputs: dict[int, list[int]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Any parameters will do."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.outputs.pop(index, None)
        for index, _, _, output_token_ids in batch_update.added:
            self.outputs[index] = output_token_ids  # grows as tokens are made
        for source, target, direction in batch_update.moved:
            moved, other = self.outputs.pop(source, None), self.outputs.pop(target, None)
            if moved is not None:
                self.outputs[target] = moved
            if other is not None and direction.name == "SWAP":
                self.outputs[source] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, token_ids in self.outputs.items():
            if token_ids:
                logits[index, token_ids[-1]] = -float("inf")
        return logits


def main() -> None:
    prompt = "ha ha ha ha ha ha ha ha"
    params = SamplingParams(temperature=0, max_tokens=12)

    for processors in ([], [NoStutter]):
        with LLM("smollm2", logits_processors=processors) as llm:
            [output] = llm.generate(prompt, params, use_tqdm=False)
            print(repr(output.outputs[0].text))


if __name__ == "__main__":
    main()
