"""Training adapters on the CME mixture: templates, mixture, tokens, batches, loss, trainer."""
