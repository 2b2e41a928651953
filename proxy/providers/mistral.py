"""Mistral's chat completions: OpenAI's form with other words for some things and stricter rules for others."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from proxy.protocol.conversation import Conversation
from proxy.protocol.events import Event, Fault
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.base import JSON_HEADERS, Asked, Encoding, Fields, Form, Reader, Writer, dump
from proxy.providers.chat_answer import ChatReader, ChatWriter, chat_body, events_of_chat
from proxy.providers.chat_profile import Profile
from proxy.providers.chat_read import FAMILY, read_chat
from proxy.providers.chat_write import write_chat
from proxy.providers.faults import classify, fault_members
from proxy.providers.relay import relay_body
from proxy.providers.whole_calls import WholeCalls

_MISTRAL: Final = Profile(
    options=MappingProxyType(
        {
            name: name
            for name in (
                "frequency_penalty", "guardrails", "logprobs", "metadata", "n", "prediction", "presence_penalty",
                "prompt_cache_key", "safe_prompt", "temperature", "top_k", "top_logprobs", "top_p",
            )
        }
        | {"seed": "random_seed"}
    ),
    limit="max_tokens",
    forced="any",
    max_temperature=1.5,
    asks_usage=False,
    tool_id=re.compile(r"[A-Za-z0-9]{9}"),
    thoughts="chunks",
    files=False,
    document_urls=True,
    names=False,
    prefix=True,
)

class Mistral:
    """``POST /v1/chat/completions`` of ``api.mistral.ai`` and its regional servers."""

    name = "mistral"
    family = FAMILY
    wire = "mistral"

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        return read_chat(fields, model, streams)

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        return write_chat(conversation, form, _MISTRAL, "/v1/chat/completions")

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        edited = relay_body(body, fields, form)
        return Encoding("/v1/chat/completions", JSON_HEADERS, edited, streams=fields.get("stream") is True)

    def credential(self, key: str) -> HeaderList:
        return [(b"authorization", b"Bearer " + key.encode())]

    def reader(self, encoding: Encoding) -> Reader:
        return ChatReader()

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        return events_of_chat(body)

    def writer(self, asked: Asked) -> Writer:
        # Every stream of this vendor tells its usage, and its calls whole: its SDK refuses a piece without a name.
        return WholeCalls(ChatWriter(asked._replace(wants_usage=True)))

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        return chat_body(events, asked)

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        return classify(head, body)

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        return fault.cause.value.openai_status, dump({"object": "error", **fault_members(fault)})
