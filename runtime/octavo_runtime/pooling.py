"""What models, poolers and the engine tell each other about pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo_protocol.pooling import PoolingParams

SequencePooling = Literal["CLS", "LAST", "MEAN"]
TokenPooling = Literal["ALL", "STEP"]
TOKEN_TASKS = ("token_embed", "token_classify")


@dataclass(frozen=True, slots=True)
class DenseHead:
    """A linear layer after pooling. folder: holds its model.safetensors. activation: torch's name
    ("Tanh").
    """

    folder: Path
    in_features: int
    out_features: int
    has_bias: bool
    activation: str = "Identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingConfig:
    """How a model pools: its own files, under the user's `PoolerConfig`. Nothing is left open.

    tasks: what requests may ask for, the default first. use_activation: unless a request says
    otherwise, vectors have length 1 and logits go through `activation`. dense: heads of
    embeddings, in order. embedding_size: of vectors, after them. matryoshka: whether requests may
    ask for fewer dimensions; matryoshka_dimensions: for which, () = any. dimensions: the default;
    None = all. labels: names of the classes, in order; () where the model gives vectors.
    max_model_len: what the model's files say beside config.json; None = nothing.
    prompts: texts to put before a prompt, by name, as sentence-transformers has them.
    """

    tasks: tuple[str, ...]
    seq_pooling_type: SequencePooling
    tok_pooling_type: TokenPooling = "ALL"
    use_activation: bool = True
    activation: Literal["softmax", "sigmoid", "identity"] = "identity"
    dense: tuple[DenseHead, ...] = ()
    embedding_size: int = 0
    matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    dimensions: int | None = None
    labels: tuple[str, ...] = ()
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    max_model_len: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()

    @property
    def task(self) -> str:
        """The default one."""
        return self.tasks[0]


@dataclass(frozen=True, slots=True)
class PoolPart:
    """Rows start … stop - 1 of a step's hidden states: a whole prompt, to be pooled as one.

    params: of its request; `task` is set. prompt_token_ids: of the rows, where `params` or the
    pooling type need them. Where a prompt was computed in several steps, the rows are what
    `seq_pooling_type` needs of it: its first (CLS) or its last ones (LAST), or one row, the mean.
    """

    start: int
    stop: int
    params: PoolingParams
    prompt_token_ids: Sequence[int]
