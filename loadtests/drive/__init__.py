"""The callers: each load is a process of its own, told by JSON what to do, answering in JSON."""
