"""What an application does with an older major of an SDK. Run as a script by that SDK's interpreter; imports nothing
of the project.

    python older_program.py openai|anthropic BASE_URL

Prints one JSON object: for each step what it returned or raised. Moments are left in; the reader ignores them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
from typing import Any

HELLO: Any = [{"role": "user", "content": "hello ✈"}]
USE_TOOL: Any = [{"role": "user", "content": "use the tool"}]
SCHEMA = {"type": "object", "properties": {"flight": {"type": "string"}, "row": {"type": "integer"}}}
TOOL: Any = {"type": "function", "function": {"name": "find_gate", "parameters": SCHEMA}}
CLAUDE_TOOL: Any = {"name": "find_gate", "input_schema": SCHEMA}
CONTENT = bytes(range(251)) * 10_000
OF_VENDOR = ("x-request-id", "request-id", "openai-version", "x-ratelimit-remaining-requests", "content-type")


def plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        dumped = value.model_dump(mode="json", warnings=False)
        return {"class": type(value).__name__, "_request_id": getattr(value, "_request_id", None), **dumped}
    if isinstance(value, (bytes, bytearray)):
        return [len(value), hashlib.sha256(value).hexdigest()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return value


def describe(error: Exception) -> Any:
    seen = {"class": type(error).__name__}
    for name in ("status_code", "code", "type", "param", "body", "request_id", "message"):
        seen[name] = plain(getattr(error, name, None))
    return seen


class OpenAISteps:
    def __init__(self, sdk: Any, async_sdk: Any) -> None:
        self.sdk = sdk
        self.async_sdk = async_sdk

    def ask(self, **fields: Any) -> Any:
        return self.sdk.chat.completions.create(**{"model": "gpt-4o-mini", "messages": HELLO, **fields})

    def whole(self) -> Any:
        return self.ask()

    def raw(self) -> Any:
        raw = self.sdk.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
        return [{name: raw.headers.get(name) for name in OF_VENDOR}, raw.parse()]

    def stream(self) -> Any:
        return list(self.ask(stream=True, stream_options={"include_usage": True}))

    def tools(self) -> Any:
        first = self.ask(messages=USE_TOOL, tools=[TOOL])
        said = first.choices[0].message
        result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "A1"}
        return [first, self.ask(messages=[*USE_TOOL, said.model_dump(exclude_none=True), result], tools=[TOOL])]

    def tool_stream(self) -> Any:
        return list(self.ask(messages=USE_TOOL, tools=[TOOL], stream=True))

    def responses(self) -> Any:
        whole = self.sdk.responses.create(model="gpt-5", input="hello", store=False)
        with self.sdk.responses.stream(model="gpt-5", input="hello") as events:
            return [whole, list(events), events.get_final_response()]

    def embeddings(self) -> Any:
        return self.sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=8)

    def models(self) -> Any:
        return list(self.sdk.models.list())

    def speech(self) -> Any:
        return self.sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello").content

    def files(self) -> Any:
        made = self.sdk.files.create(file=("a.bin", io.BytesIO(CONTENT)), purpose="user_data")
        down = self.sdk.files.content(made.id).content
        return [made.bytes, made.filename, down, self.sdk.files.delete(made.id).deleted]

    def missing(self) -> Any:
        return self.ask(model="missing-model")

    def bad(self) -> Any:
        return self.ask(n=0, stream=True)

    def overloaded(self) -> Any:
        return self.ask(model="gpt-4o-mini?fault=503")

    def error_event(self) -> Any:
        return list(self.ask(model="gpt-4o-mini?fault=error_event", stream=True))

    def retried(self) -> Any:
        model = "gpt-4o-mini?fault=429&fail_first=1&retry_after_s=0.001"
        return self.sdk.with_options(max_retries=2).chat.completions.create(model=model, messages=HELLO)

    def timed_out(self) -> Any:
        return self.ask(model="gpt-4o-mini?latency_ms=60000", timeout=0.3)

    async def asynchronous(self) -> Any:
        stream = await self.async_sdk.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        asked = [{"role": "user", "content": "parallel"}]
        many = [self.async_sdk.chat.completions.create(model=f"gpt-{n}", messages=asked) for n in range(10)]
        return [chunks, [answer.choices[0].message.content for answer in await asyncio.gather(*many)]]


class AnthropicSteps:
    def __init__(self, sdk: Any, async_sdk: Any) -> None:
        self.sdk = sdk
        self.async_sdk = async_sdk
        self.asked: Any = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": HELLO}

    def whole(self) -> Any:
        return self.sdk.messages.create(**self.asked, system="be brief")

    def raw(self) -> Any:
        raw = self.sdk.messages.with_raw_response.create(**self.asked)
        return [{name: raw.headers.get(name) for name in OF_VENDOR}, raw.parse()]

    def stream(self) -> Any:
        return list(self.sdk.messages.create(**self.asked, stream=True))

    def helper(self) -> Any:
        with self.sdk.messages.stream(**self.asked) as events:
            return ["".join(events.text_stream), events.get_final_message()]

    def tools(self) -> Any:
        asked = {**self.asked, "messages": USE_TOOL, "tools": [CLAUDE_TOOL]}
        first = self.sdk.messages.create(**asked)
        use = first.content[0]
        said = {"role": "assistant", "content": [use.model_dump(include={"type", "id", "name", "input"})]}
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "A1"}]}
        return [first, self.sdk.messages.create(**{**asked, "messages": [*USE_TOOL, said, result]})]

    def count(self) -> Any:
        return self.sdk.messages.count_tokens(model="claude-haiku-4-5", messages=HELLO)

    def models(self) -> Any:
        return list(self.sdk.models.list())

    def files(self) -> Any:
        made = self.sdk.beta.files.upload(file=("a.bin", io.BytesIO(CONTENT), "text/plain"))
        return [made.size_bytes, made.filename, self.sdk.beta.files.download(made.id).read()]

    def missing(self) -> Any:
        return self.sdk.messages.create(**{**self.asked, "model": "missing-model"})

    def overloaded(self) -> Any:
        return self.sdk.messages.create(**{**self.asked, "model": "claude-haiku-4-5?fault=529"})

    def error_event(self) -> Any:
        return list(self.sdk.messages.create(**{**self.asked, "model": "c?fault=error_event"}, stream=True))

    def retried(self) -> Any:
        model = "c?fault=429&fail_first=1&retry_after_s=0.001"
        return self.sdk.with_options(max_retries=2).messages.create(**{**self.asked, "model": model})

    def timed_out(self) -> Any:
        return self.sdk.messages.create(**{**self.asked, "model": "c?latency_ms=60000"}, timeout=0.3)

    async def asynchronous(self) -> Any:
        async with self.async_sdk.messages.stream(**self.asked) as events:
            return [[event async for event in events], await events.get_final_message()]


def take(steps: Any) -> dict[str, Any]:
    """Take every step and note what it gave."""
    seen: dict[str, Any] = {}
    for name in [name for name in vars(type(steps)) if not name.startswith("_") and name != "ask"]:
        try:
            value = getattr(steps, name)()
            seen[name] = plain(asyncio.run(value) if asyncio.iscoroutine(value) else value)
        except Exception as error:
            seen[name] = describe(error)
    return seen


def main(vendor: str, url: str) -> None:
    given: Any = {"api_key": "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa", "max_retries": 0}
    if vendor == "openai":
        import openai as sdk

        steps: Any = OpenAISteps(
            sdk.OpenAI(base_url=f"{url}/v1", **given), sdk.AsyncOpenAI(base_url=f"{url}/v1", **given)
        )
    else:
        import anthropic as sdk

        steps = AnthropicSteps(sdk.Anthropic(base_url=url, **given), sdk.AsyncAnthropic(base_url=url, **given))
    print(json.dumps({"version": sdk.__version__, **take(steps)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
