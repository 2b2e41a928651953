"""One request for every row of the table of what is carried: the row's feature and nothing else beside a question."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

PNG = "iVBORw0KGgo="
PDF = "JVBERi0xLjQ="
SCHEMA: Fields = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}

_QUESTION: Fields = {"role": "user", "content": "q"}
_CHAT_TOOL: Fields = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
_TOOL: Fields = {"name": "f", "description": "d", "input_schema": SCHEMA}
_FLAT_TOOL: Fields = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": None}
_DECLARED: Fields = {"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": SCHEMA}]}


def chat_says(*parts: Fields) -> Fields:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, *parts]}]}


def chat_tools(call: Fields | None = None, result: Fields | None = None, **more: Any) -> Fields:
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}, **(call or {})}
    return {
        "messages": [
            _QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [called], **more},
            {"role": "tool", "tool_call_id": "call_1", "content": "r", **(result or {})},
        ],
        "tools": [_CHAT_TOOL],
    }


def messages_say(*blocks: Fields) -> Fields:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, *blocks]}]}


def messages_tools(*, result: Fields | None = None, first: tuple[Fields, ...] = ()) -> Fields:
    used = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
    answered = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "r", **(result or {})}
    return {
        "messages": [
            _QUESTION,
            {"role": "assistant", "content": [*first, used]},
            {"role": "user", "content": [answered]},
        ],
        "tools": [_TOOL],
    }


def parts(*more: Fields) -> Fields:
    return {"contents": [{"role": "user", "parts": [{"text": "q"}, *more]}]}


def config(**members: Any) -> Fields:
    return {"generationConfig": members}


def items(*more: Fields) -> Fields:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}, *more]}


def input_says(*more: Fields) -> Fields:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}, *more]}]}


BASE: dict[str, Fields] = {
    "openai": {"model": "m", "messages": [_QUESTION]},
    "anthropic": {"model": "m", "max_tokens": 9000, "messages": [_QUESTION]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
    "responses": {"model": "m", "input": "q"},
}

_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
_DATA_URL = f"data:image/png;base64,{PNG}"
_PDF_URL = f"data:application/pdf;base64,{PDF}"
_CACHED = {"type": "ephemeral", "ttl": "1h"}

SAMPLES: dict[tuple[str, str], Fields] = {
    # -- chat completions
    ("openai", "system message"): {"messages": [{"role": "system", "content": "s"}, _QUESTION]},
    ("openai", "developer message"): {"messages": [{"role": "developer", "content": "s"}, _QUESTION]},
    ("openai", "later system message"): {"messages": [_QUESTION, {"role": "system", "content": "s"}, _QUESTION]},
    ("openai", "name of a speaker"): {"messages": [{**_QUESTION, "name": "n"}]},
    ("openai", "image, data URL"): chat_says({"type": "image_url", "image_url": {"url": _DATA_URL}}),
    ("openai", "image, URL"): chat_says({"type": "image_url", "image_url": {"url": "https://e.example/a.png"}}),
    ("openai", "image detail"): chat_says({"type": "image_url", "image_url": {"url": _DATA_URL, "detail": "low"}}),
    ("openai", "document, PDF"): chat_says({"type": "file", "file": {"filename": "a.pdf", "file_data": _PDF_URL}}),
    ("openai", "document, file id"): chat_says({"type": "file", "file": {"file_id": "file-1"}}),
    ("openai", "audio input"): chat_says({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    ("openai", "cache_control"): {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "q", "cache_control": _CACHED}]}]
    },
    ("openai", "prompt_cache_breakpoint"): {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "q", "prompt_cache_breakpoint": {"mode": "explicit"}}],
            }
        ]
    },
    ("openai", "tools"): {"tools": [_CHAT_TOOL]},
    ("openai", "tools, strict"): {
        "tools": [{"type": "function", "function": {**_CHAT_TOOL["function"], "strict": True}}]
    },
    ("openai", "tools, custom"): {"tools": [{"type": "custom", "custom": {"name": "c"}}]},
    ("openai", "tool calls and results"): chat_tools(),
    ("openai", "parallel tool calls"): {
        "messages": [
            _QUESTION,
            {
                "role": "assistant",
                "content": "t",
                "tool_calls": [
                    {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in "ab"
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
        ],
        "tools": [_CHAT_TOOL],
    },
    ("openai", "signed thoughts"): chat_tools(
        thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": "s"}]
    ),
    ("openai", "reasoning_content"): chat_tools(reasoning_content="t"),
    ("openai", "tool_choice required"): {"tools": [_CHAT_TOOL], "tool_choice": "required"},
    ("openai", "tool_choice none"): {"tools": [_CHAT_TOOL], "tool_choice": "none"},
    ("openai", "tool_choice function"): {
        "tools": [_CHAT_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    ("openai", "tool_choice allowed_tools"): {
        "tools": [_CHAT_TOOL, {"type": "function", "function": {"name": "g"}}],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
        },
    },
    ("openai", "parallel_tool_calls"): {"tools": [_CHAT_TOOL], "parallel_tool_calls": False},
    ("openai", "response_format json_schema"): {"response_format": _FORMAT},
    ("openai", "response_format json_object"): {"response_format": {"type": "json_object"}},
    ("openai", "functions"): {"functions": [{"name": "f"}]},
    ("openai", "max_tokens"): {"max_tokens": 10},
    ("openai", "max_completion_tokens"): {"max_completion_tokens": 10},
    ("openai", "temperature"): {"temperature": 0.5},
    ("openai", "temperature above the range"): {"temperature": 1.8},
    ("openai", "top_p"): {"top_p": 0.5},
    ("openai", "top_k"): {"top_k": 5},
    ("openai", "stop"): {"stop": ["X"]},
    ("openai", "seed"): {"seed": 1},
    ("openai", "frequency_penalty"): {"frequency_penalty": 0.5},
    ("openai", "presence_penalty"): {"presence_penalty": 0.5},
    ("openai", "n"): {"n": 2},
    ("openai", "logprobs"): {"logprobs": True},
    ("openai", "top_logprobs"): {"top_logprobs": 3},
    ("openai", "logit_bias"): {"logit_bias": {"1": 5}},
    ("openai", "reasoning_effort"): {"reasoning_effort": "low"},
    ("openai", "thinking"): {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    ("openai", "verbosity"): {"verbosity": "low"},
    ("openai", "user"): {"user": "u"},
    ("openai", "safety_identifier"): {"safety_identifier": "u"},
    ("openai", "metadata"): {"metadata": {"k": "v"}},
    ("openai", "service_tier"): {"service_tier": "auto"},
    ("openai", "service_tier flex"): {"service_tier": "flex"},
    ("openai", "store"): {"store": True},
    ("openai", "prediction"): {"prediction": {"type": "content", "content": "p"}},
    ("openai", "prompt_cache_key"): {"prompt_cache_key": "k"},
    ("openai", "prompt_cache_retention"): {"prompt_cache_retention": "24h"},
    ("openai", "prompt_cache_options"): {"prompt_cache_options": {"mode": "explicit"}},
    ("openai", "modalities"): {"modalities": ["text", "audio"]},
    ("openai", "audio"): {"audio": {"voice": "v", "format": "wav"}},
    ("openai", "moderation"): {"moderation": {"model": "m"}},
    ("openai", "web_search_options"): {"web_search_options": {}},
    ("openai", "safe_prompt"): {"safe_prompt": True},
    ("openai", "guardrails"): {"guardrails": [{"x": 1}]},
    ("openai", "random_seed"): {"random_seed": 1},
    ("openai", "unknown field"): {"brand_new": 1},
    # -- messages
    ("anthropic", "system"): {"system": "s"},
    ("anthropic", "later system message"): {"messages": [_QUESTION, {"role": "system", "content": "s"}, _QUESTION]},
    ("anthropic", "begun answer"): {"messages": [_QUESTION, {"role": "assistant", "content": "a"}]},
    ("anthropic", "image, base64"): messages_say(
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    ),
    ("anthropic", "image, URL"): messages_say(
        {"type": "image", "source": {"type": "url", "url": "https://e.example/a"}}
    ),
    ("anthropic", "document, PDF"): messages_say(
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
    ),
    ("anthropic", "document, PDF by URL"): messages_say(
        {"type": "document", "source": {"type": "url", "url": "https://e.example/a.pdf"}}
    ),
    ("anthropic", "document, text"): messages_say(
        {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    ),
    ("anthropic", "document citations"): messages_say(
        {
            "type": "document",
            "citations": {"enabled": True},
            "source": {"type": "text", "media_type": "text/plain", "data": "x"},
        }
    ),
    ("anthropic", "search_result"): messages_say(
        {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]}
    ),
    ("anthropic", "file id"): messages_say({"type": "document", "source": {"type": "file", "file_id": "f"}}),
    ("anthropic", "cache_control"): {
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
    },
    ("anthropic", "cache_control, whole request"): {"cache_control": {"type": "ephemeral"}},
    ("anthropic", "tools"): {"tools": [_TOOL]},
    ("anthropic", "tools, of the vendor"): {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ("anthropic", "tools, input_examples"): {"tools": [{**_TOOL, "input_examples": [{"a": 1}]}]},
    ("anthropic", "tool_use and tool_result"): messages_tools(),
    ("anthropic", "tool_result, image"): messages_tools(
        result={
            "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]
        }
    ),
    ("anthropic", "tool_result, is_error"): messages_tools(result={"is_error": True}),
    ("anthropic", "thinking block"): messages_tools(
        first=({"type": "thinking", "thinking": "t", "signature": "s"},)
    ),
    ("anthropic", "redacted_thinking block"): messages_tools(first=({"type": "redacted_thinking", "data": "d"},)),
    ("anthropic", "server_tool_use block"): messages_say({"type": "server_tool_use", "id": "s", "name": "n"}),
    ("anthropic", "tool_choice any"): {"tools": [_TOOL], "tool_choice": {"type": "any"}},
    ("anthropic", "tool_choice none"): {"tools": [_TOOL], "tool_choice": {"type": "none"}},
    ("anthropic", "tool_choice tool"): {"tools": [_TOOL], "tool_choice": {"type": "tool", "name": "f"}},
    ("anthropic", "disable_parallel_tool_use"): {
        "tools": [_TOOL],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    },
    ("anthropic", "output_config.format"): {
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}
    },
    ("anthropic", "output_config.effort"): {"output_config": {"effort": "low"}},
    ("anthropic", "thinking, budget"): {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    ("anthropic", "max_tokens"): {"max_tokens": 10},
    ("anthropic", "stop_sequences"): {"stop_sequences": ["X"]},
    ("anthropic", "temperature"): {"temperature": 0.5},
    ("anthropic", "top_p"): {"top_p": 0.5},
    ("anthropic", "top_k"): {"top_k": 5},
    ("anthropic", "metadata.user_id"): {"metadata": {"user_id": "u"}},
    ("anthropic", "service_tier"): {"service_tier": "standard_only"},
    ("anthropic", "container"): {"container": "c"},
    ("anthropic", "mcp_servers"): {"mcp_servers": [{"url": "u"}]},
    ("anthropic", "context_management"): {"context_management": {"edits": []}},
    ("anthropic", "inference_geo"): {"inference_geo": "eu"},
    ("anthropic", "speed"): {"speed": "fast"},
    ("anthropic", "unknown field"): {"brand_new": 1},
    # -- responses
    ("responses", "instructions"): {"instructions": "s"},
    ("responses", "image, data URL"): input_says({"type": "input_image", "image_url": _DATA_URL}),
    ("responses", "image, file id"): input_says({"type": "input_image", "file_id": "f"}),
    ("responses", "file, PDF"): input_says({"type": "input_file", "filename": "a.pdf", "file_data": _PDF_URL}),
    ("responses", "file, URL"): input_says({"type": "input_file", "file_url": "https://e.example/a.pdf"}),
    ("responses", "tools"): {"tools": [_FLAT_TOOL]},
    ("responses", "tools, custom"): {"tools": [{"type": "custom", "name": "c", "description": "d"}]},
    ("responses", "tools, of the vendor"): {"tools": [{"type": "web_search"}]},
    ("responses", "function calls and outputs"): items(
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
    ),
    ("responses", "reasoning items"): items(
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "t"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"role": "user", "content": "q"},
    ),
    ("responses", "other items"): items({"type": "web_search_call", "id": "w"}),
    ("responses", "tool_choice required"): {"tools": [_FLAT_TOOL], "tool_choice": "required"},
    ("responses", "tool_choice function"): {
        "tools": [_FLAT_TOOL],
        "tool_choice": {"type": "function", "name": "f"},
    },
    ("responses", "parallel_tool_calls"): {"tools": [_FLAT_TOOL], "parallel_tool_calls": False},
    ("responses", "text.format json_schema"): {
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    },
    ("responses", "text.verbosity"): {"text": {"verbosity": "low"}},
    ("responses", "reasoning.effort"): {"reasoning": {"effort": "low"}},
    ("responses", "reasoning.summary"): {"reasoning": {"summary": "auto"}},
    ("responses", "include"): {"include": ["file_search_call.results"]},
    ("responses", "max_output_tokens"): {"max_output_tokens": 100},
    ("responses", "temperature"): {"temperature": 0.5},
    ("responses", "top_p"): {"top_p": 0.5},
    ("responses", "top_logprobs"): {"top_logprobs": 3},
    ("responses", "user"): {"user": "u"},
    ("responses", "safety_identifier"): {"safety_identifier": "u"},
    ("responses", "metadata"): {"metadata": {"k": "v"}},
    ("responses", "service_tier"): {"service_tier": "auto"},
    ("responses", "store"): {"store": True},
    ("responses", "truncation"): {"truncation": "auto"},
    ("responses", "prompt_cache_key"): {"prompt_cache_key": "k"},
    ("responses", "prompt_cache_retention"): {"prompt_cache_retention": "24h"},
    ("responses", "prompt_cache_options"): {"prompt_cache_options": {"mode": "explicit"}},
    ("responses", "previous_response_id"): {"previous_response_id": "r"},
    ("responses", "conversation"): {"conversation": "c"},
    ("responses", "background"): {"background": True},
    ("responses", "prompt"): {"prompt": {"id": "p"}},
    ("responses", "max_tool_calls"): {"max_tool_calls": 2},
    ("responses", "moderation"): {"moderation": {"model": "m"}},
    ("responses", "context_management"): {"context_management": [{"type": "compaction"}]},
    ("responses", "unknown field"): {"brand_new": 1},
    # -- generateContent
    ("gemini", "systemInstruction"): {"systemInstruction": {"parts": [{"text": "s"}]}},
    ("gemini", "inlineData, image"): parts({"inlineData": {"mimeType": "image/png", "data": PNG}}),
    ("gemini", "inlineData, PDF"): parts({"inlineData": {"mimeType": "application/pdf", "data": PDF}}),
    ("gemini", "inlineData, audio"): parts({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
    ("gemini", "fileData, URL"): parts({"fileData": {"mimeType": "image/png", "fileUri": "https://e.example/a"}}),
    ("gemini", "fileData, of the vendor"): parts({"fileData": {"mimeType": "image/png", "fileUri": "gs://b/a"}}),
    ("gemini", "functionDeclarations"): {"tools": [_DECLARED]},
    ("gemini", "tools, of the vendor"): {"tools": [{"googleSearch": {}}]},
    ("gemini", "functionCall and functionResponse"): {
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "r"}}}]},
        ]
    },
    ("gemini", "thought parts"): {
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"text": "t", "thought": True}, {"text": "a"}]},
            {"role": "user", "parts": [{"text": "q"}]},
        ]
    },
    ("gemini", "executableCode"): parts({"executableCode": {"code": "x"}}),
    ("gemini", "functionCallingConfig"): {
        "tools": [_DECLARED],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    },
    ("gemini", "temperature"): config(temperature=0.5),
    ("gemini", "topP"): config(topP=0.5),
    ("gemini", "topK"): config(topK=5),
    ("gemini", "maxOutputTokens"): config(maxOutputTokens=100),
    ("gemini", "stopSequences"): config(stopSequences=["X"]),
    ("gemini", "candidateCount"): config(candidateCount=2),
    ("gemini", "seed"): config(seed=1),
    ("gemini", "presencePenalty"): config(presencePenalty=0.5),
    ("gemini", "frequencyPenalty"): config(frequencyPenalty=0.5),
    ("gemini", "responseLogprobs"): config(responseLogprobs=True),
    ("gemini", "logprobs"): config(logprobs=3),
    ("gemini", "responseModalities"): config(responseModalities=["AUDIO"]),
    ("gemini", "speechConfig"): config(speechConfig={"x": 1}),
    ("gemini", "responseSchema"): config(
        responseMimeType="application/json",
        responseSchema={"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}},
    ),
    ("gemini", "responseMimeType"): config(responseMimeType="application/json"),
    ("gemini", "thinkingConfig"): config(thinkingConfig={"thinkingBudget": 2000}),
    ("gemini", "safetySettings"): {"safetySettings": [{"category": "c", "threshold": "t"}]},
    ("gemini", "cachedContent"): {"cachedContent": "c"},
    ("gemini", "labels"): {"labels": {"k": "v"}},
    ("gemini", "unknown field"): {"brandNew": 1},
}
