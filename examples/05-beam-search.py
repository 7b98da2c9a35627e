"""The most likely continuations of a prompt, instead of one that is drawn.

Run: python examples/05-beam-search.py
"""

from octavo import LLM
from octavo.sampling_params import BeamSearchParams


def main() -> None:
    llm = LLM("smollm2")
    params = BeamSearchParams(beam_width=3, max_tokens=12)

    [output] = llm.beam_search(["The capital of France is"], params)

    for beam in output.sequences:
        print(f"{beam.cum_logprob:8.3f}  {beam.text!r}")


if __name__ == "__main__":
    main()
