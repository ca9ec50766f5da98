"""The vLLM engine: the same requests and responses as every other, computed by vLLM."""
