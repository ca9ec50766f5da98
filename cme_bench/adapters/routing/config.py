"""Fields that methods with experts share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.shared.config import AdapterConfig, is_int


@dataclass
class RoutedConfig(AdapterConfig):
    """Configuration of a mixture of low-rank experts behind a dense softmax router.

    Args:
        num_experts: Number k of experts, at least 2.
        balance_coefficient: Weight of the load-balance loss that ``balance_tape(model)`` computes; 0 for
            none.
    """

    balance: ClassVar[str] = "shares"
    """The load-balance loss: "shares" (``balance_penalty``) or "switch" (``switch_penalty``)."""

    num_experts: int = field(default=4, metadata={"help": "Number of experts, at least 2."})
    balance_coefficient: float = field(default=0.0, metadata={"help": "Weight of the load-balance loss."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_int(self.num_experts) or self.num_experts < 2:
            raise AdapterError(f"num_experts must be an integer of at least 2, got {self.num_experts!r}")
        if self.balance_coefficient < 0:
            raise AdapterError(f"balance_coefficient must not be negative, got {self.balance_coefficient!r}")
