"""POST /v1/completions: the request."""

from pydantic import model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.base import GenerationRequest
from octavo_protocol.openai.lists import List


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions. `prompt` may be text, token ids, or a list of either."""

    prompt: str | List[str] | List[int] | List[List[int]]
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    return_prompt_text: bool = False

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.logprobs is not None and self.logprobs < -1:
            raise ValidationError(
                f"logprobs must be at least -1 (the whole vocabulary), got {self.logprobs}",
                parameter="logprobs",
            )
        if self.suffix:
            raise ValidationError(
                "suffix is not supported: this model has no fill-in-the-middle format. Put the "
                "text before the gap into prompt and leave suffix out",
                parameter="suffix",
            )
        return self

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def requested_max_tokens(self) -> int | None:
        """0 is allowed with `echo`: the prompt is then only scored and given back."""
        if self.max_tokens == 0 and self.echo:
            return 1
        return super().requested_max_tokens()

    @property
    def generates(self) -> bool:
        """False where max_tokens=0 asks for the prompt alone."""
        return self.max_tokens != 0

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one. Raises `ValidationError` for an empty list."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ValidationError("prompt cannot be empty", parameter="prompt")
        if isinstance(prompt[0], int):
            return [list(prompt)]  # one prompt of token ids
        return list(prompt)
