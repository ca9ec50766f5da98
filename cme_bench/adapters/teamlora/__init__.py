from cme_bench.adapters.teamlora.config import TeamLoraConfig
from cme_bench.adapters.teamlora.layer import TeamLoraLinear
from cme_bench.adapters.teamlora.model import TeamLoraModel

__all__ = ["TeamLoraConfig", "TeamLoraLinear", "TeamLoraModel"]
