"""Which operation a request is and where it goes."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import RequestHead, make_request_head
from proxy.protocol.routes import MAX_TARGET_BYTES, Dialect, Grammar, Located, Shape, grammar_of, locate


def head_of(method: str, target: str, *headers: tuple[bytes, bytes]) -> RequestHead:
    return make_request_head(method, target, headers)


def located(method: str, target: str, *headers: tuple[bytes, bytes]) -> Located:
    return locate(head_of(method, target, *headers))


UNDERSTOOD = [
    ("POST", "/chat/completions", "chat.completions", Shape.WHOLE_OR_STREAM, "openai", Grammar.DONE),
    ("POST", "/completions", "completions", Shape.WHOLE_OR_STREAM, "openai", Grammar.DONE),
    ("POST", "/responses", "responses", Shape.WHOLE_OR_STREAM, "openai", Grammar.RESPONSES),
    ("POST", "/responses/input_tokens", "responses.input_tokens", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/responses/compact", "responses.compact", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/decisions", "decisions", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/embeddings", "embeddings", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/moderations", "moderations", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/rerank", "rerank", Shape.WHOLE, "openai", Grammar.LOOSE),
    ("POST", "/audio/speech", "audio.speech", Shape.BINARY, "openai", Grammar.LOOSE),
    ("POST", "/images/generations", "images.generations", Shape.WHOLE_OR_STREAM, "openai", Grammar.LOOSE),
    ("GET", "/models", "models", Shape.READ, "openai", Grammar.LOOSE),
    ("GET", "/models/gpt-4o", "model", Shape.READ, "openai", Grammar.LOOSE),
    ("POST", "/messages", "messages", Shape.WHOLE_OR_STREAM, "anthropic", Grammar.MESSAGES),
    ("POST", "/messages/count_tokens", "messages.count_tokens", Shape.WHOLE, "anthropic", Grammar.LOOSE),
    ("POST", "/fim/completions", "fim.completions", Shape.WHOLE_OR_STREAM, "mistral", Grammar.DONE),
    ("POST", "/agents/completions", "agents.completions", Shape.WHOLE_OR_STREAM, "mistral", Grammar.DONE),
    ("POST", "/chat/moderations", "chat.moderations", Shape.WHOLE, "mistral", Grammar.LOOSE),
    ("POST", "/classifications", "classifications", Shape.WHOLE, "mistral", Grammar.LOOSE),
    ("POST", "/ocr", "ocr", Shape.WHOLE, "mistral", Grammar.LOOSE),
]


@pytest.mark.parametrize("version", ["/v1", ""])
@pytest.mark.parametrize(("method", "tail", "name", "shape", "provider", "grammar"), UNDERSTOOD)
def test_understood_operation_is_known_with_and_without_version(
    version: str, method: str, tail: str, name: str, shape: Shape, provider: str, grammar: Grammar
) -> None:
    """A base URL with or without /v1 reaches the same operation, and the upstream always sees /v1."""
    found = located(method, version + tail)
    assert (found.route.name, found.route.shape, found.provider) == (name, shape, provider)
    assert found.path == "/v1" + tail
    assert found.route.grammar is grammar
    assert grammar_of(name) is grammar
    assert found.route.understood
    assert not found.route.upload


@pytest.mark.parametrize("version", ["/v1", ""])
@pytest.mark.parametrize("mount", ["openai", "anthropic", "mistral"])
@pytest.mark.parametrize(("method", "tail", "name", "shape", "provider", "grammar"), UNDERSTOOD)
def test_mount_decides_the_provider(
    mount: str, version: str, method: str, tail: str, name: str, shape: Shape, provider: str, grammar: Grammar
) -> None:
    """Whatever the path's usual owner and the headers say."""
    found = located(method, f"/{mount}{version}{tail}", (b"anthropic-version", b"2023-06-01"))
    assert (found.provider, found.path, found.route.name) == (mount, "/v1" + tail, name)


@pytest.mark.parametrize("header", [(b"anthropic-version", b"2026-10-21"), (b"x-api-key", b"k")])
@pytest.mark.parametrize(
    ("method", "target", "provider", "dialect"),
    [
        ("GET", "/v1/models", "anthropic", Dialect.ANTHROPIC),
        ("GET", "/v1/models/claude", "anthropic", Dialect.ANTHROPIC),
        ("POST", "/v1/files", "anthropic", Dialect.ANTHROPIC),
        ("GET", "/v1/skills", "anthropic", Dialect.ANTHROPIC),
        ("POST", "/v1/chat/completions", "anthropic", Dialect.OPENAI),
        ("POST", "/v1/fim/completions", "mistral", Dialect.MISTRAL),
        ("POST", "/v1/ocr", "mistral", Dialect.MISTRAL),
    ],
)
def test_anthropic_headers_decide_where_the_path_does_not(
    header: tuple[bytes, bytes], method: str, target: str, provider: str, dialect: Dialect
) -> None:
    """A path with an owner stays with it; Anthropic's OpenAI-compatible route still speaks OpenAI."""
    found = located(method, target, header)
    assert (found.provider, found.dialect) == (provider, dialect)


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        ("/openai/v1/messages", Dialect.ANTHROPIC),
        ("/mistral/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/anthropic/v1/chat/completions", Dialect.OPENAI),
        ("/anthropic/v1/messages", Dialect.ANTHROPIC),
        ("/mistral/v1/chat/completions", Dialect.MISTRAL),
        ("/openai/v1/chat/completions", Dialect.OPENAI),
    ],
)
def test_dialect_follows_the_path_where_it_is_that_vendor_s_own(target: str, dialect: Dialect) -> None:
    """An OpenAI-compatible server behind any mount answers an SDK in that SDK's words."""
    assert located("POST", target).dialect is dialect


@pytest.mark.parametrize(
    ("method", "target", "name", "path"),
    [
        ("GET", "/v1/chat/completions", "chat.other", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions/c1", "chat.other", "/v1/chat/completions/c1"),
        ("GET", "/v1/completions", "completions.other", "/v1/completions"),
        ("GET", "/v1/responses/r1", "responses.other", "/v1/responses/r1"),
        ("POST", "/v1/responses/r1/cancel", "responses.other", "/v1/responses/r1/cancel"),
        ("GET", "/v1/embeddings", "embeddings.other", "/v1/embeddings"),
        ("POST", "/v1/models", "models.other", "/v1/models"),
        ("DELETE", "/v1/models/ft:x", "models.other", "/v1/models/ft:x"),
        ("GET", "/v1/models/a/b", "models.other", "/v1/models/a/b"),
        ("GET", "/v1/models/", "models.other", "/v1/models/"),
        ("GET", "/v1/messages", "messages.other", "/v1/messages"),
        ("POST", "/v1/messages/batches", "messages.batches", "/v1/messages/batches"),
        ("GET", "/v1/messages/batches/b1/results", "messages.batches", "/v1/messages/batches/b1/results"),
        ("PUT", "/v1/audio/speech", "audio.other", "/v1/audio/speech"),
        ("HEAD", "/v1/models", "models.other", "/v1/models"),
        ("POST", "/v1/chat/completions/", "chat.other", "/v1/chat/completions/"),
        ("GET", "/batches", "batches", "/v1/batches"),
        ("GET", "/vector_stores/v/files", "vector_stores", "/v1/vector_stores/v/files"),
        ("GET", "/foo/bar", "other", "/foo/bar"),
        ("GET", "/v2/rerank", "other", "/v2/rerank"),
        ("GET", "/v1", "other", "/v1"),
        ("GET", "/v1/", "other", "/v1/"),
        ("GET", "/", "other", "/"),
        ("GET", "/v1/new/thing", "other", "/v1/new/thing"),
        ("GET", "/V1/models", "other", "/V1/models"),
        ("GET", "/v1/v1/models", "other", "/v1/v1/models"),
        ("GET", "/v1/files/a%20b", "files", "/v1/files/a%20b"),
        ("GET", "/v1/files/a.b", "files", "/v1/files/a.b"),
        ("GET", "/openaix/models", "other", "/openaix/models"),
        ("GET", "/openai/openai/models", "other", "/openai/models"),
        ("GET", "/openai/zzz", "other", "/zzz"),
        ("GET", "/openai", "other", "/"),
        ("GET", "/openai/", "other", "/"),
    ],
)
def test_everything_else_passes_through_under_a_name_of_few(method: str, target: str, name: str, path: str) -> None:
    """A wrong method is another operation, never the understood one; unknown paths keep every byte."""
    found = located(method, target)
    assert (found.route.name, found.path) == (name, path)
    assert found.route.shape is Shape.PASS
    assert not found.route.understood
    assert not found.route.has_json_body


@pytest.mark.parametrize(
    ("target", "provider"),
    [
        ("/v1/messages/batches", "anthropic"),
        ("/sessions", "anthropic"),
        ("/v1/organizations/me", "anthropic"),
        ("/v1/libraries", "mistral"),
        ("/v1/batch/jobs", "mistral"),
        ("/v1/agents", "openai"),
        ("/v1/zzz", "openai"),
    ],
)
def test_pass_through_goes_to_the_owner_of_its_root(target: str, provider: str) -> None:
    """Roots that only one vendor has go there; all others are OpenAI's unless a header says otherwise."""
    assert located("GET", target).provider == provider


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/v1/files", "files"),
        ("/v1/uploads/u1/parts", "uploads"),
        ("/v1/audio/transcriptions", "audio.transcriptions"),
        ("/v1/audio/translations", "audio.translations"),
        ("/v1/images/edits", "images.edits"),
        ("/v1/images/variations", "images.variations"),
    ],
)
@pytest.mark.parametrize("content_type", [b"", b"multipart/form-data; boundary=x", b"application/json"])
def test_upload_route_is_streamed_whatever_its_content_type(target: str, name: str, content_type: bytes) -> None:
    """Its body is never held."""
    headers = [(b"content-type", content_type)] if content_type else []
    found = located("POST", target, *headers)
    assert (found.route.name, found.route.upload, found.route.shape) == (name, True, Shape.PASS)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/v1/chat/completions", "chat.other"),
        ("/v1/videos", "videos"),
        ("/v1/skills", "skills"),
        ("/v1/containers/c/files", "containers"),
        ("/zzz", "other"),
    ],
)
def test_multipart_body_is_streamed_on_any_route(target: str, name: str) -> None:
    """A form where JSON is expected is not parsed as JSON either."""
    found = located("POST", target, (b"content-type", b"Multipart/Form-Data; boundary=x"))
    assert (found.route.name, found.route.upload, found.route.understood) == (name, True, False)


def test_only_realtime_and_responses_may_become_websockets() -> None:
    """Every other operation refuses an upgrade."""
    allowed = {
        target
        for target in ("/v1/realtime", "/realtime", "/v1/responses", "/v1/chat/completions", "/v1/live/sessions", "/")
        if located("GET", target).route.websocket
    }
    assert allowed == {"/v1/realtime", "/realtime", "/v1/responses"}
    assert not located("POST", "/v1/responses").route.websocket
    assert not located("POST", "/v1/realtime/calls").route.websocket


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/..",
        "/..",
        "/v1/./models",
        "/.",
        "/v1/%2e%2e/admin",
        "/v1/%2E%2e/admin",
        "/v1/.%2e/admin",
        "/v1/%2e/models",
        "/v1/a%2e%2eb",
        "//v1/models",
        "/v1//models",
        "/v1/models//",
        "/v1/models%2fx",
        "/v1/models%2Fx",
        "/v1/models%5cx",
        "/v1/mo\\dels",
        "/v1/models%00",
        "/v1/mod\0els",
        "/v1/mod\nels",
        "/v1/mod%0aels",
        "/v1/mod%0Dels",
        "/v1/mod%7fels",
        "/v1/mo dels",
        "/v1/mod#els",
        "/v1/modéls",
        "/v1/mod\x7fels",
        "/v1/ch%61t/completions",
        "/v1/chat/%43ompletions",
        "/v1/%31",
        "/v1/models/%zz",
        "/v1/models/%4",
        "/openai/../v1/models",
        "/openai//models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_path_that_two_readers_may_read_differently_is_refused(method: str, path: str) -> None:
    """Dots, doubled slashes, and escapes that hide structure or letters never reach an upstream."""
    with pytest.raises(ProxyError) as caught:
        located(method, path)
    assert caught.value.kind is Kind.BAD_REQUEST
    assert path not in caught.value.public


@pytest.mark.parametrize("query", ["a=\nb", "a b", "é", "a#b", "\0", "\x7f"])
@pytest.mark.parametrize("path", ["/v1/models", "/zzz"])
def test_query_with_raw_control_or_space_is_refused(path: str, query: str) -> None:
    """It could become a second line of the upstream request."""
    with pytest.raises(ProxyError) as caught:
        located("GET", f"{path}?{query}")
    assert caught.value.kind is Kind.BAD_REQUEST


@pytest.mark.parametrize("query", ["a=../x&b=//&c=%2f%00", "limit=10&after=x%20y", "a=b?c"])
def test_query_is_free_in_its_escapes(query: str) -> None:
    """Dots, slashes and escapes mean nothing special there."""
    assert located("GET", f"/v1/models?{query}").route.name == "models"


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_target_longer_than_8_kib_is_refused(extra: int, fits: bool) -> None:
    """Path and query count together, on understood and on passed routes."""
    size = MAX_TARGET_BYTES + extra
    for path, query in (("/" + "a" * (size - 1), ""), ("/v1/models", "q" * (size - 10)), ("/zzz", "q" * (size - 4))):
        head = RequestHead("GET", path, query, {}, [])
        if fits:
            locate(head)
        else:
            with pytest.raises(ProxyError) as caught:
                locate(head)
            assert caught.value.kind is Kind.URI_TOO_LONG


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_trace_and_connect_are_refused(method: str) -> None:
    """One would echo credentials, the other opens a tunnel."""
    with pytest.raises(ProxyError) as caught:
        located(method, "/v1/models")
    assert caught.value.kind is Kind.METHOD_NOT_ALLOWED


def test_grammar_of_an_unknown_route_is_loose() -> None:
    """Nothing is demanded of a stream that is merely passed through."""
    assert grammar_of("files") is Grammar.LOOSE


@pytest.mark.parametrize("path", ["/v1/models/org%2Fmodel", "/models/org%2fmodel", "/mistral/v1/models/a%2Fb%2Fc"])
def test_the_escaped_slash_of_a_models_name_goes_upstream_as_it_is(path: str) -> None:
    """Open models are called owner/model, and SDKs escape the slash."""
    located = locate(make_request_head("GET", path, []))

    assert located.route.name == "model"
    assert located.path.endswith(path.rpartition("/models")[2])


@pytest.mark.parametrize("tail", ["a%2F..%2Fb", "%2F%2Fa", "a%2F%2e%2e", "a%2F%2Fb"])
def test_an_escaped_slash_hides_no_segment(tail: str) -> None:
    """What the slash stands for is judged as a slash."""
    with pytest.raises(ProxyError):
        locate(make_request_head("GET", f"/v1/models/{tail}", []))
