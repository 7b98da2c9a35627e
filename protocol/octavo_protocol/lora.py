"""`LoRARequest`: which adapter a request wants. Names and rules are vLLM's."""

import msgspec

from octavo_protocol.errors import ValidationError


class LoRARequest(msgspec.Struct, omit_defaults=True, eq=False):
    """An adapter of the base model.

    lora_int_id: a number from 1 on that no other adapter of this engine has. lora_path: folder,
    hub name or URL. load_inplace: load again even where the name is known. base_model_name: told
    as the adapter's parent. Two requests are equal when their names are.

    Raises `ValidationError` for a number below 1, and for an empty name or path.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False

    def __post_init__(self) -> None:
        if not self.lora_name:
            raise ValidationError("lora_name must not be empty", parameter="lora_name")
        if isinstance(self.lora_int_id, bool) or not isinstance(self.lora_int_id, int):
            raise ValidationError("lora_int_id must be an integer", parameter="lora_int_id")
        if self.lora_int_id < 1:
            raise ValidationError(
                f"lora_int_id must be at least 1, got {self.lora_int_id}", parameter="lora_int_id"
            )
        if not self.lora_path:
            raise ValidationError("lora_path must not be empty", parameter="lora_path")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoRARequest) and self.lora_name == other.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)


def adapter_identity(name: str, version: str) -> str:
    """What block hashes bind (`HashIdentity.adapter`): another version shares no blocks."""
    return f"{name}@{version}"
