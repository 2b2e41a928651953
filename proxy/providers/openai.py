"""OpenAI's chat completions, and every server that offers the same: Azure OpenAI, vLLM, llama.cpp, Ollama, TGI …"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final
from urllib.parse import quote

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

_COMMON: Final = {
    name: name
    for name in (
        "frequency_penalty", "logit_bias", "logprobs", "n", "presence_penalty", "seed", "temperature", "top_logprobs",
        "top_p", "user",
    )
}
_OPENAI: Final = Profile(
    options=MappingProxyType(
        _COMMON
        | {
            name: name
            for name in (
                "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
                "safety_identifier", "service_tier", "store", "verbosity",
            )
        }
    ),
    max_stops=4,
    allowed_tools=True,
    default_temperature=1.0,
    plain_models=("gpt-3", "gpt-4", "chatgpt-4"),
)
# What vLLM, llama.cpp, Ollama and TGI have in common; they skip what they do not know.
_COMPATIBLE: Final = Profile(
    options=MappingProxyType(_COMMON | {"top_k": "top_k"}),
    limit="max_tokens",
    files=False,
    thoughts="reasoning_content",
)


class OpenAI:
    """``POST /v1/chat/completions``."""

    name = "openai"
    family = FAMILY
    wire = "chat"
    _profile = _OPENAI

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        return read_chat(fields, model, streams)

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        return write_chat(conversation, form, self._profile, self.path_of(form))

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        edited = relay_body(body, fields, form)
        return Encoding(self.path_of(form), JSON_HEADERS, edited, streams=fields.get("stream") is True)

    def path_of(self, form: Form) -> str:
        """Where a target's requests go, behind its base path."""
        return "/v1/chat/completions"

    def credential(self, key: str) -> HeaderList:
        return [(b"authorization", b"Bearer " + key.encode())]

    def reader(self, encoding: Encoding) -> Reader:
        return ChatReader()

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        return events_of_chat(body)

    def writer(self, asked: Asked) -> Writer:
        return ChatWriter(asked)

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        return chat_body(events, asked)

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        return classify(head, body)

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        return fault.cause.value.openai_status, dump({"error": fault_members(fault)})


class Compatible(OpenAI):
    """Any server that says it speaks OpenAI's chat completions."""

    name = "compatible"
    _profile = _COMPATIBLE

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        """The limit goes by the name that all of them know: some skip the new one, and answer without a limit."""
        both = "max_completion_tokens" in fields and "max_tokens" in fields
        renamed = {} if both or "max_completion_tokens" not in fields else {"max_completion_tokens": "max_tokens"}
        edited = relay_body(body, fields, form, renamed=renamed)
        return Encoding(self.path_of(form), JSON_HEADERS, edited, streams=fields.get("stream") is True)


class Azure(OpenAI):
    """Azure OpenAI: the same bodies, its own header, and with an ``api-version`` a path for each deployment."""

    name = "azure"

    def path_of(self, form: Form) -> str:
        if not form.version:
            return "/openai/v1/chat/completions"
        deployment = quote(form.model, safe="")
        return f"/openai/deployments/{deployment}/chat/completions?api-version={quote(form.version, safe='')}"

    def credential(self, key: str) -> HeaderList:
        return [(b"api-key", key.encode())]
