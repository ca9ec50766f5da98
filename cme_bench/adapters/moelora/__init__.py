from cme_bench.adapters.moelora.config import MoeLoraConfig
from cme_bench.adapters.moelora.layer import MoeLoraLinear
from cme_bench.adapters.moelora.model import MoeLoraModel

__all__ = ["MoeLoraConfig", "MoeLoraLinear", "MoeLoraModel"]
