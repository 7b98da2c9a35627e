"""LoRA adapters of one engine: their files, the host tier, the device's slots."""
