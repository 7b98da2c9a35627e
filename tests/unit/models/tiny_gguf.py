"""A tiny Llama in a GGUF file, and the same model as plain arrays in Hugging Face's order."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS = 4, 2, 8, 32, 64, 2
# Byte-level alphabet of a few letters and digits, two merges, three special tokens.
_LETTERS = [*"abcdefgh0123456789", "Ġ"]
_MERGES = ["a b", "Ġ c"]
_NORMAL = 1
_TOKEN_TYPES = {"<bos>": 3, "<eos>": 3, "<tool>": 4}  # control, control, user-defined
TOKENS = ["<bos>", "<eos>", *_LETTERS, "ab", "Ġc", "<tool>"]


@dataclass
class TinyGguf:
    """What to write; tests change single fields."""

    architecture: str = "llama"
    tokenizer_model: str = "gpt2"
    pre: str = "smollm"
    quantised: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0
    rope_factors: NDArray[np.float32] | None = None
    tied: bool = True
    extra_tensor: str | None = None
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Writes the file; `weights` then holds the values that a loader must find."""
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(500000.0)
        self._add_tokenizer(writer)
        random = np.random.default_rng(0)
        for name, (gguf_name, shape, heads) in self._tensors().items():
            self._add(writer, random, name, gguf_name, shape, heads)
        if self.rope_factors is not None:
            writer.add_tensor("rope_freqs.weight", self.rope_factors)
        if self.extra_tensor is not None:
            writer.add_tensor(self.extra_tensor, np.zeros(4, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add_tokenizer(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.tokenizer_model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(TOKENS)
        control, user, normal = 3, 4, 1
        writer.add_token_types(
            [
                control if t in ("<bos>", "<eos>") else user if t == "<tool>" else normal
                for t in TOKENS
            ]
        )
        writer.add_token_merges(_MERGES)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template("{{ messages[0]['content'] }}")

    def _tensors(self) -> dict[str, tuple[str, tuple[int, ...], int | None]]:
        """Hugging Face name -> (GGUF name, shape, number of heads whose rows are interleaved)."""
        named: dict[str, tuple[str, tuple[int, ...], int | None]] = {
            "model.embed_tokens": ("token_embd", (len(TOKENS), HIDDEN), None),
            "model.norm": ("output_norm", (HIDDEN,), None),
        }
        if not self.tied:
            named["lm_head"] = ("output", (len(TOKENS), HIDDEN), None)
        for layer in range(LAYERS):
            ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
            for part, gguf_part, shape, heads in (
                ("input_layernorm", "attn_norm", (HIDDEN,), None),
                ("self_attn.q_proj", "attn_q", (HEADS * HEAD_DIM, HIDDEN), HEADS),
                ("self_attn.k_proj", "attn_k", (KV_HEADS * HEAD_DIM, HIDDEN), KV_HEADS),
                ("self_attn.v_proj", "attn_v", (KV_HEADS * HEAD_DIM, HIDDEN), None),
                ("self_attn.o_proj", "attn_output", (HIDDEN, HEADS * HEAD_DIM), None),
                ("post_attention_layernorm", "ffn_norm", (HIDDEN,), None),
                ("mlp.gate_proj", "ffn_gate", (INNER, HIDDEN), None),
                ("mlp.up_proj", "ffn_up", (INNER, HIDDEN), None),
                ("mlp.down_proj", "ffn_down", (HIDDEN, INNER), None),
            ):
                named[ours + part] = (theirs + gguf_part, shape, heads)
        return named

    def _add(
        self,
        writer: gguf.GGUFWriter,
        random: np.random.Generator,
        name: str,
        gguf_name: str,
        shape: tuple[int, ...],
        heads: int | None,
    ) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        kind = self.quantised if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        stored: Any = quantize(values, kind)
        self.weights[f"{name}.weight"] = gguf.dequantize(stored, kind)
        if heads is not None:  # as llama.cpp's converter orders the rows of q and k
            stored = (
                stored.reshape(heads, 2, len(stored) // heads // 2, *stored.shape[1:])
                .swapaxes(1, 2)
                .reshape(stored.shape)
            )
        writer.add_tensor(f"{gguf_name}.weight", stored, raw_dtype=kind)
