"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Names are vLLM's."""

from typing import Any

from octavo_protocol.openai.strict import Strict


class LoadLoRAAdapterRequest(Strict):
    """lora_path: folder, hub name or URL. load_inplace: replace one of the name. revision: branch,
    tag or commit of a hub's repository.
    """

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    is_3d_lora_weight: bool = False
    revision: str | None = None


class UnloadLoRAAdapterRequest(Strict):
    """lora_int_id: not looked at, as in vLLM."""

    lora_name: str = ""
    lora_int_id: Any = None
