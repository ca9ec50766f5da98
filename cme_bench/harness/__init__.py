"""All that touches lm-eval: its tasks, metrics and aggregations, its model interface, and its environment."""
