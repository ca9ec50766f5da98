"""PEFT's own generic tests, from its source package at the installed version, with our methods' configs."""
