"""Steps on an NVIDIA GPU: inputs made on the device, CUDA graphs, overlapping steps."""
