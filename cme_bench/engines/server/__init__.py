"""A served model: an OpenAI-compatible server of completions, asked over HTTP."""
