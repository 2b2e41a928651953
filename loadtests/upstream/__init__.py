"""A provider that is never the bottleneck, as a process of its own."""
