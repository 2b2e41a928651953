"""For people who know locust: ``pip install locust && locust -f loadtests/locustfile.py --host http://127.0.0.1:8080``.

Three kinds of users ask an OpenAI-compatible gateway: new questions, popular ones, and streams. Locust itself costs
more than the proxy, so read its percentiles and not its throughput; `python -m loadtests` measures what it costs.
Options come from the environment: ``LOAD_MODEL``, ``LOAD_KEY``, ``LOAD_QUESTIONS`` (how many popular ones).
"""

from __future__ import annotations

import os
import random
import time
import uuid
from typing import Any

from locust import HttpUser, between, task

_PATH = "/v1/chat/completions"
_MODEL = os.environ.get("LOAD_MODEL", "gpt-4o-mini")
_KEY = os.environ.get("LOAD_KEY", "sk-load")
_QUESTIONS = int(os.environ.get("LOAD_QUESTIONS", "20"))
_WEIGHTS = [1 / (place + 1) for place in range(_QUESTIONS)]


def make_question(text: str, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {"model": _MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 128}
    return {**body, "stream": True} if stream else body


class Caller(HttpUser):  # type: ignore[misc]  # locust has no types
    """Mostly new questions, some that others ask as well, some streams."""

    wait_time = between(0.05, 0.2)

    def on_start(self) -> None:
        self.client.headers["authorization"] = f"Bearer {_KEY}"

    @task(5)  # type: ignore[untyped-decorator]
    def ask_something_new(self) -> None:
        self.client.post(_PATH, json=make_question(uuid.uuid4().hex), name="new question")

    @task(3)  # type: ignore[untyped-decorator]
    def ask_something_popular(self) -> None:
        number = random.choices(range(_QUESTIONS), _WEIGHTS)[0]
        self.client.post(_PATH, json=make_question(f"popular question {number}"), name="popular question")

    @task(2)  # type: ignore[untyped-decorator]
    def read_a_stream(self) -> None:
        """Time to the first event is reported as an entry of its own."""
        began = time.perf_counter()
        question = make_question(uuid.uuid4().hex, stream=True)
        with self.client.post(_PATH, json=question, stream=True, name="stream", catch_response=True) as response:
            first = 0.0
            whole = False
            for line in response.iter_lines():
                if line and not first:
                    first = time.perf_counter() - began
                whole = whole or line == b"data: [DONE]"
            if not whole:
                response.failure("the stream has no end")
        self.environment.events.request.fire(
            request_type="SSE", name="first event", response_time=first * 1000, response_length=0, exception=None
        )
