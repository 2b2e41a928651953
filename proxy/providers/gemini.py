"""Gemini's generateContent and streamGenerateContent, both ways round."""

from __future__ import annotations

from urllib.parse import unquote

from proxy.protocol.conversation import Conversation
from proxy.protocol.edit import edit_members
from proxy.protocol.events import Event, Fault
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.base import JSON_HEADERS, Asked, Encoding, Fields, Form, Reader, Writer, dump
from proxy.providers.faults import classify
from proxy.providers.gemini_answer import GeminiReader, GeminiWriter, content_body, events_of_content, fault_object
from proxy.providers.gemini_read import FAMILY, read_contents
from proxy.providers.gemini_write import path_of, write_contents


class Gemini:
    """``POST /v1beta/models/{model}:generateContent``; a stream is ``:streamGenerateContent?alt=sse``."""

    name = "gemini"
    family = FAMILY
    wire = "gemini"

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        return read_contents(fields, model, streams)

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        return write_contents(conversation, form)

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        """The model is in the path, and so is whether a stream is wanted: `stream` in ``fields`` says so here."""
        members = {name: value for name, value in form.extra if name not in fields}
        streams = fields.get("stream") is True
        return Encoding(path_of(form, streams), JSON_HEADERS, edit_members(body, members), streams=streams)

    def credential(self, key: str) -> HeaderList:
        return [(b"x-goog-api-key", key.encode())]

    def reader(self, encoding: Encoding) -> Reader:
        return GeminiReader()

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        return events_of_content(body)

    def writer(self, asked: Asked) -> Writer:
        return GeminiWriter()

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        return content_body(events, asked)

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        return classify(head, body)

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        return fault.cause.value.openai_status, dump(fault_object(fault))


def read_path(path: str) -> tuple[str, bool] | None:
    """Model and whether a stream is wanted, from a caller's path (without query); ``None`` if it is another route."""
    name, colon, verb = path.rpartition("/models/")[2].rpartition(":")
    if not colon or verb not in ("generateContent", "streamGenerateContent"):
        return None
    return unquote(name), verb == "streamGenerateContent"
