"""Measurements of models and adapters beside their scores."""
