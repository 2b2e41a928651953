"""What each direction carries and what it refuses: the table that README shows and a test holds against the code.

A row is a field or feature of the caller's dialect, a column the target's dialect. A letter says what becomes of it:

- ``c`` carried: it says the same in the target's words;
- ``a`` adapted: it goes as far as the target allows, and the field is reported;
- ``r`` reported: it is left out, and the field is named to the caller and in the log;
- ``x`` refused: the request is answered with 400 that names the field, and nothing is sent;
- ``s`` same: both speak the same form, and the bytes go through as they are.
"""

from __future__ import annotations

from typing import Final

TARGETS: Final = ("openai", "anthropic", "mistral", "compatible", "gemini", "responses")
"""The columns. Azure OpenAI is as ``openai``; ``compatible`` is vLLM, llama.cpp, Ollama, TGI and the like."""

WORDS: Final = {"c": "carried", "a": "adapted", "r": "reported", "x": "refused", "s": "same"}

TITLES: Final = {
    "openai": "Chat completions",
    "anthropic": "Messages",
    "responses": "Responses",
    "gemini": "generateContent",
}

CARRIAGE: Final[dict[str, dict[str, str]]] = {
    "openai": {
        "system message": "sccscc",
        "developer message": "sccscc",
        "later system message": "sacsac",
        "name of a speaker": "srrsrr",
        "image, data URL": "sccscc",
        "image, URL": "sccscc",
        "image detail": "srcsrc",
        "document, PDF": "sccscc",
        "document, file id": "sxxsxx",
        "audio input": "sxcscx",
        "cache_control": "scrsrr",
        "prompt_cache_breakpoint": "scrsrr",
        "tools": "sccscc",
        "tools, strict": "sccsrc",
        "tools, custom": "sxxsxx",
        "tool calls and results": "sccscc",
        "parallel tool calls": "sccscc",
        "signed thoughts": "sccsrr",
        "reasoning_content": "srcsrr",
        "tool_choice required": "sccscc",
        "tool_choice none": "sccscc",
        "tool_choice function": "sccscc",
        "tool_choice allowed_tools": "sccscc",
        "parallel_tool_calls": "sccsrc",
        "response_format json_schema": "sccscc",
        "response_format json_object": "sccscc",
        "functions": "sxxsxx",
        "max_tokens": "sccscc",
        "max_completion_tokens": "sccscc",
        "temperature": "sccscc",
        "temperature above the range": "saascc",
        "top_p": "sccscc",
        "top_k": "sccscr",
        "stop": "sccscx",
        "seed": "srcscr",
        "frequency_penalty": "srcscr",
        "presence_penalty": "srcscr",
        "n": "sxcscx",
        "logprobs": "sxcsxx",
        "top_logprobs": "sxcsxx",
        "logit_bias": "sxxsxx",
        "reasoning_effort": "sccscc",
        "thinking": "sccscc",
        "verbosity": "srrsrc",
        "user": "scrsrc",
        "safety_identifier": "scrsrc",
        "metadata": "srcsrc",
        "service_tier": "scrsrc",
        "service_tier flex": "srrsrc",
        "store": "srrsrc",
        "prediction": "srcsrr",
        "prompt_cache_key": "srcsrc",
        "prompt_cache_retention": "srrsrc",
        "prompt_cache_options": "srrsrc",
        "modalities": "sxxsxx",
        "audio": "sxxsxx",
        "moderation": "sxxsxx",
        "web_search_options": "sxxsxx",
        "safe_prompt": "srcsrr",
        "guardrails": "sxcsxx",
        "random_seed": "srcscr",
        "unknown field": "srcsrr",
    },
    "anthropic": {
        "system": "cscccc",
        "later system message": "csccac",
        "begun answer": "rscrcc",
        "image, base64": "cscccc",
        "image, URL": "csccxc",
        "document, PDF": "cscxcc",
        "document, PDF by URL": "xscxxc",
        "document, text": "cscccc",
        "document citations": "rsrrrr",
        "search_result": "cscccc",
        "file id": "xsxxxx",
        "cache_control": "rsrrrr",
        "cache_control, whole request": "rsrrrr",
        "tools": "cscccc",
        "tools, of the vendor": "xsxxxx",
        "tools, input_examples": "rsrrrr",
        "tool_use and tool_result": "cscccc",
        "tool_result, image": "cscccc",
        "tool_result, is_error": "rsrrcr",
        "thinking block": "rsccrr",
        "redacted_thinking block": "rsrrrr",
        "server_tool_use block": "xsxxxx",
        "tool_choice any": "cscccc",
        "tool_choice none": "cscccc",
        "tool_choice tool": "cscccc",
        "disable_parallel_tool_use": "csccrc",
        "output_config.format": "cscccc",
        "output_config.effort": "cscccc",
        "thinking, budget": "cscccc",
        "max_tokens": "cscccc",
        "stop_sequences": "cscccx",
        "temperature": "cscccc",
        "top_p": "cscccc",
        "top_k": "rscccr",
        "metadata.user_id": "csrcrc",
        "service_tier": "csrrrc",
        "container": "xsxxxx",
        "mcp_servers": "xsxxxx",
        "context_management": "rsrrrr",
        "inference_geo": "xsxxxx",
        "speed": "rsrrrr",
        "unknown field": "rsrrrr",
    },
    "responses": {
        "instructions": "cccccs",
        "image, data URL": "cccccs",
        "image, file id": "xxxxxs",
        "file, PDF": "cccxcs",
        "file, URL": "xccxcs",
        "tools": "cccccs",
        "tools, custom": "cccccs",
        "tools, of the vendor": "xxxxxs",
        "function calls and outputs": "cccccs",
        "reasoning items": "rrccrs",
        "other items": "xxxxxs",
        "tool_choice required": "cccccs",
        "tool_choice function": "cccccs",
        "parallel_tool_calls": "ccccrs",
        "text.format json_schema": "cccccs",
        "text.verbosity": "crrrrs",
        "reasoning.effort": "cccccs",
        "reasoning.summary": "rrrrrs",
        "include": "rrrrrs",
        "max_output_tokens": "cccccs",
        "temperature": "cccccs",
        "top_p": "cccccs",
        "top_logprobs": "xxxxxs",
        "user": "ccrcrs",
        "safety_identifier": "ccrrrs",
        "metadata": "crcrrs",
        "service_tier": "ccrrrs",
        "store": "crrrrs",
        "truncation": "rrrrrs",
        "prompt_cache_key": "crcrrs",
        "prompt_cache_retention": "crrrrs",
        "prompt_cache_options": "crrrrs",
        "previous_response_id": "xxxxxs",
        "conversation": "xxxxxs",
        "background": "xxxxxs",
        "prompt": "xxxxxs",
        "max_tool_calls": "xxxxxs",
        "moderation": "xxxxxs",
        "context_management": "rrrrrs",
        "unknown field": "rrrrrs",
    },
    "gemini": {
        "systemInstruction": "ccccsc",
        "inlineData, image": "ccccsc",
        "inlineData, PDF": "cccxsc",
        "inlineData, audio": "cxccsx",
        "fileData, URL": "ccccsc",
        "fileData, of the vendor": "xxxxsx",
        "functionDeclarations": "ccccsc",
        "tools, of the vendor": "xxxxsx",
        "functionCall and functionResponse": "ccccsc",
        "thought parts": "rrccsr",
        "executableCode": "xxxxsx",
        "functionCallingConfig": "ccccsc",
        "temperature": "ccccsc",
        "topP": "ccccsc",
        "topK": "rcccsr",
        "maxOutputTokens": "ccccsc",
        "stopSequences": "ccccsx",
        "candidateCount": "cxccsx",
        "seed": "crccsr",
        "presencePenalty": "crccsr",
        "frequencyPenalty": "crccsr",
        "responseLogprobs": "xxxxsx",
        "logprobs": "xxxxsx",
        "responseModalities": "xxxxsx",
        "speechConfig": "xxxxsx",
        "responseSchema": "ccccsc",
        "responseMimeType": "ccccsc",
        "thinkingConfig": "ccccsc",
        "safetySettings": "rrrrsr",
        "cachedContent": "xxxxsx",
        "labels": "rrrrsr",
        "unknown field": "rrrrsr",
    },
}

# What comes back, by the caller's dialect; every target's answer is read into the same neutral words.
ANSWERS: Final[dict[str, dict[str, str]]] = {
    "openai": {
        "text": "`content`",
        "thoughts": "`reasoning_content`; with their signatures in `thinking_blocks`, to be sent back",
        "tool calls": "`tool_calls`, several at once too",
        "refusal": "`refusal`, `finish_reason: content_filter`",
        "length": "`finish_reason: length`",
        "usage": "`usage` with `cached_tokens`, `cache_write_tokens` and `reasoning_tokens`; in streams if asked for",
        "fault in a stream": "`data: {\"error\": …}` and no `[DONE]`",
    },
    "anthropic": {
        "text": "`text` blocks",
        "thoughts": "`thinking` blocks; the signature is empty where the model's maker gives none",
        "tool calls": "`tool_use` blocks",
        "refusal": "text and `stop_reason: refusal`",
        "length": "`stop_reason: max_tokens`",
        "usage": "`usage` with `cache_read_input_tokens`, `cache_creation_input_tokens`; in streams at the end",
        "fault in a stream": "`event: error` and no `message_stop`",
    },
    "responses": {
        "text": "`message` items",
        "thoughts": "`reasoning` items; their signatures in `encrypted_content`, to be sent back",
        "tool calls": "`function_call` and `custom_tool_call` items",
        "refusal": "`refusal` parts, `status: incomplete`",
        "length": "`status: incomplete`",
        "usage": "`usage` of the last event",
        "fault in a stream": "`event: error` and no `response.completed`",
    },
    "gemini": {
        "text": "`text` parts",
        "thoughts": "`text` parts with `thought`",
        "tool calls": "`functionCall` parts, each whole",
        "refusal": "text and `finishReason: SAFETY`",
        "length": "`finishReason: MAX_TOKENS`",
        "usage": "`usageMetadata` of the last chunk",
        "fault in a stream": "`data: {\"error\": …}`",
    },
}


def render_requests(caller: str) -> str:
    """The table of one caller's dialect in Markdown."""
    lines = [f"| {TITLES[caller]} | {' | '.join(TARGETS)} |", "|---|" + "---|" * len(TARGETS)]
    for field, letters in CARRIAGE[caller].items():
        words = " | ".join([WORDS[letter] for letter in letters])
        lines.append(f"| {field} | {words} |")
    return "\n".join(lines) + "\n"


def render_answers() -> str:
    """What comes back, in Markdown."""
    callers = list(ANSWERS)
    lines = [f"| answer | {' | '.join([TITLES[caller] for caller in callers])} |", "|---|" + "---|" * len(callers)]
    rows = [(name, [ANSWERS[caller][name] for caller in callers]) for name in ANSWERS["openai"]]
    lines += [f"| {name} | {' | '.join(words)} |" for name, words in rows]
    return "\n".join(lines) + "\n"
