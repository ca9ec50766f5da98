"""Tools that every room may use: files, locks, csv. Imports nothing above it."""
