from cme_bench.adapters.moslora.config import MosLoraConfig
from cme_bench.adapters.moslora.layer import MosLoraLinear
from cme_bench.adapters.moslora.model import MosLoraModel

__all__ = ["MosLoraConfig", "MosLoraLinear", "MosLoraModel"]
