"""A loaded model with slots for adapters beside its layers."""

from collections.abc import Mapping

import torch

from octavo_runtime.layers.lora import ModelAdapters
from octavo_runtime.lora.adapter import LoRAAdapter
from octavo_runtime.model_config import resolve_dtype
from octavo_runtime.worker.loaded_model import LoadedModel


class AdaptedModel(LoadedModel):
    """_adapters: None where the configuration makes no room for any."""

    _adapters: ModelAdapters | None

    def load_model(self) -> None:
        super().load_model()
        lora = self._config.lora
        if lora is None:
            self._adapters = None
        else:
            self._adapters = ModelAdapters(self.model, lora, self.adapter_dtype, self.device)

    def drop_model(self) -> None:
        self._adapters = None
        super().drop_model()

    @property
    def adapter_dtype(self) -> torch.dtype:
        """What adapters' matrices are kept in."""
        lora = self._config.lora
        return self.dtype if lora is None else resolve_dtype(lora.lora_dtype, self.dtype, "cuda")

    @property
    def adapter_targets(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) of each matrix that adapters may change, by its name in the
        checkpoint without `.weight`.
        """
        return {} if self._adapters is None else self._adapters.targets

    @torch.inference_mode()
    def set_adapter(self, slot: int, adapter: LoRAAdapter | None) -> None:
        """Copies `adapter` into the slot, for steps that are launched from now on; None empties it.

        `load_model` empties all slots. On a GPU the copy is asynchronous from pinned memory.
        """
        assert self._adapters is not None, "EngineConfig.lora makes room for adapters"
        self._adapters.set(slot, adapter)
