"""A catalog file with something of everything in it."""

RICH = r"""# Where models are, and who may answer for whom.
providers:
  openai:
    api_keys:
      - ${OPENAI_KEY}
      - {name: batch, key: "${OPENAI_KEY_2}"}
      - {name: mounted, file: keys/openai}
      - ${OPENAI_KEY_3:-}
    first_byte_s: 30
    max_in_flight: 200
    max_queue: 50
    queue_s: 2.5
    keep_warm: 4
  anthropic:
    api_key_file: keys/anthropic
    version: "2023-06-01"
  mistral:
    region: eu
    api_key: sk-mistral
  azure-eu:
    kind: azure
    base_url: https://house.openai.azure.com/openai/v1/
    api_key: sk-azure
    version: 2024-10-21
  google: {kind: gemini, api_key: sk-google}
  house:
    kind: compatible
    base_url: http://vllm.house:8000/v1
    ping_s: 60
    ping_path: /health
    idle_s: 40
    total_s: 900
  second: {kind: responses, api_key: sk-second, base_url: "https://api.openai.com/v1"}
models:
  gpt-4o:
    description: The usual one.
    strategy: weighted
    attempts: 4
    retry_unsafe: false
    first_byte_s: 20
    hedging: {after_s: 1.5, most_share: 0.05}
    targets:
      - {provider: openai, weight: 3}
      - provider: azure-eu
        model: gpt4o-deployment
        weight: 1
        price: {input: 2.75, output: 11, cached_input: 1.375}
        first_byte_s: 10
        version: 2025-01-01
      - provider: house
        model: llama-3.3-70b
        weight: 0
        max_tokens: 0
        most_tokens: 8192
        cache_markers: cache_control
        thinking: "off"
        parameters:
          temperature: 0.2
          chat_template_kwargs: {enable_thinking: false, depth: [1, 2.5, ~, "3"]}
          stop: ["</s>"]
  claude-sonnet:
    targets:
      - {provider: anthropic, model: claude-sonnet-5, json_output: tool, thinking: adaptive, max_tokens: 4096}
      - google/gemini-3-pro
      - second/gpt-5.5
  small: {strategy: lowest_latency, targets: [openai/gpt-4o-mini, mistral/mistral-small-latest]}
  embed:
    targets: [openai/text-embedding-3-small]
    batching: {most_inputs: 64, window_ms: 4}
    total_s: 15
  mistral-*: {targets: [mistral]}
  house/*: {strategy: sticky, targets: [house/llama-3.3-70b]}
aliases:
  gpt-4: gpt-4o
  gpt-4-turbo: gpt-4
  default: small
  old-name: a-model-of-no-catalog
routes:
  chat.completions: &busy
    share: auto
    leave: finish
    linger_s: 7
    cache: {ttl_s: 60, stale_while_revalidate_s: 5, stale_if_error_s: 600}
  messages: {<<: *busy, share: "off"}
prices:
  llama-3.3-70b: {input: 0.5, output: 2, cached_input: 0.05}
placeholder_keys: [none, 007]
"""

ENV = {"OPENAI_KEY": "sk-one", "OPENAI_KEY_2": "sk-two"}


def write_rich(folder, text=RICH):
    """The file and its mounted secrets; returns the path."""
    keys = folder / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "openai").write_text("sk-three\n")
    (keys / "anthropic").write_text("sk-ant\n")
    path = folder / "catalog.yaml"
    path.write_text(text)
    return path
