"""Bit masks of the tokens that a grammar allows next."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.token_bitmask import apply_token_bitmask

# [ceil(vocab_size / 32)] int32; bit i % 32 of word i // 32 is set where token i is allowed.
TokenMask = NDArray[np.int32]


def apply_token_masks(logits: Tensor, masks: Mapping[int, TokenMask]) -> None:
    """Sets the logits of forbidden tokens to -inf, in place.

    logits: [num_rows, vocab_size]. masks: by row; rows without one are free. Tokens beyond the
    mask's end are forbidden.
    """
    if masks:
        bitmask = torch.from_numpy(np.stack(list(masks.values()))).to(logits.device)
        apply_token_bitmask(logits, bitmask, list(masks))
