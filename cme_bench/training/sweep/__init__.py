"""Many adapters trained together on one frozen base, each equal to its own training up to rounding.

rows of all adapters -> the base's products, once -> each adapter's own update -> each adapter's own loss
"""
