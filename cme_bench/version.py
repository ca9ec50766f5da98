"""The version of this package, read by its build, its records and its reports."""

__version__ = "0.2.0"
