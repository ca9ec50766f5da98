"""What the methods have in common: configuration, the gated low-rank product, the router, the PEFT tuner."""
