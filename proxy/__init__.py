"""Sameflight: an LLM API proxy in which identical concurrent requests share one upstream call."""

__version__ = "0.1.0"
