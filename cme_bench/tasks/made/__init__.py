"""Rows of suite ``cme_mm``: made here from packages of the registries, by seeds, since no hub has them."""
