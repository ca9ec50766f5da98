"""The common parts of the methods: configuration, the gated low-rank product, the router, the PEFT tuner."""
