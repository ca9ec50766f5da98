"""The costs of adapters: training steps, memory and inference, measured in paired rounds on one base
model."""
