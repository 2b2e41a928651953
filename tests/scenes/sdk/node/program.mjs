// What an application does with the Node SDKs.
//
//     node program.mjs openai|anthropic|mistral|ai-openai|ai-anthropic BASE_URL
//
// Prints one JSON object: for each step what it returned or raised. The packages are found beside the copy of this
// file that the test runs. Moments are left in; the reader ignores them.

import { File } from "node:buffer";
import { createHash } from "node:crypto";

globalThis.File ??= File; // Node 18 has it here only, and the SDKs look for it there

const [vendor, url] = process.argv.slice(2);
const apiKey = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa";
const hello = [{ role: "user", content: "hello ✈" }];
const useTool = [{ role: "user", content: "use the tool" }];
const schema = { type: "object", properties: { flight: { type: "string" }, row: { type: "integer" } } };
const tool = { type: "function", function: { name: "find_gate", parameters: schema } };
const claudeTool = { name: "find_gate", input_schema: schema };
const content = Buffer.alloc(3_000_000, "0123456789abc");

const all = async (iterable) => {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
};
const digest = (bytes) => [bytes.byteLength, createHash("sha256").update(Buffer.from(bytes)).digest("hex")];
const named = (headers) =>
  ["x-request-id", "request-id", "openai-version", "content-type"].map((name) => headers.get(name));

const describe = (error) => ({
  class: error.constructor.name,
  message: error.message,
  status: error.status ?? error.statusCode ?? null,
  code: error.code ?? null,
  type: error.type ?? null,
  param: error.param ?? null,
  requestID: error.requestID ?? null,
  error: error.error ?? null,
  body: error.body ?? error.responseBody ?? null,
});

async function openai() {
  const { default: OpenAI, toFile } = await import("openai");
  const sdk = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const ask = (fields = {}, options = {}) =>
    sdk.chat.completions.create({ model: "gpt-4o-mini", messages: hello, ...fields }, options);
  return {
    whole: () => ask(),
    raw: async () => {
      const { data, response, request_id } = await ask().withResponse();
      return [data, named(response.headers), request_id];
    },
    stream: async () => all(await ask({ stream: true, stream_options: { include_usage: true } })),
    helper: async () => sdk.chat.completions.stream({ model: "gpt-4o", messages: hello }).finalChatCompletion(),
    tools: async () => {
      const first = await ask({ messages: useTool, tools: [tool] });
      const said = first.choices[0].message;
      const result = { role: "tool", tool_call_id: said.tool_calls[0].id, content: "A1" };
      return [first, await ask({ messages: [...useTool, said, result], tools: [tool] })];
    },
    toolStream: async () => all(await ask({ messages: useTool, tools: [tool], stream: true })),
    responses: async () => [
      await sdk.responses.create({ model: "gpt-5", input: "hello", store: false }),
      await all(await sdk.responses.create({ model: "gpt-5", input: "hello", stream: true })),
      await sdk.responses.stream({ model: "gpt-5", input: "hello", store: false }).finalResponse(),
    ],
    embeddings: () => sdk.embeddings.create({ model: "text-embedding-3-small", input: ["a", "b"], dimensions: 8 }),
    models: () => all(sdk.models.list()),
    speech: async () => {
      const spoken = await sdk.audio.speech.create({ model: "tts-1", voice: "alloy", input: "hello" });
      return digest(await spoken.arrayBuffer());
    },
    files: async () => {
      const made = await sdk.files.create({ file: await toFile(content, "a.bin"), purpose: "user_data" });
      const down = await sdk.files.content(made.id);
      return [made.bytes, made.filename, digest(await down.arrayBuffer())];
    },
    parallel: async () => {
      const asked = (n) => ask({ messages: [{ role: "user", content: `question ${n}` }] });
      const answers = await Promise.all([...Array(10).keys()].map(asked));
      return answers.map((answer) => answer.choices[0].message.content);
    },
    missing: () => ask({ model: "missing-model" }),
    bad: () => ask({ n: 0, stream: true }),
    overloaded: () => ask({ model: "gpt-4o-mini?fault=503" }),
    errorEvent: async () => all(await ask({ model: "gpt-4o-mini?fault=error_event", stream: true })),
    retried: () => ask({ model: "gpt-4o?fault=429&fail_first=1&retry_after_s=0.001" }, { maxRetries: 2 }),
    timedOut: () => ask({ model: "gpt-4o-mini?latency_ms=60000" }, { timeout: 300 }),
    cut: async () => {
      try {
        return await all(await ask({ model: "gpt-4o-mini?fault=truncate", stream: true }));
      } catch (error) {
        return { raised: true };
      }
    },
  };
}

async function anthropic() {
  const { default: Anthropic, toFile } = await import("@anthropic-ai/sdk");
  const sdk = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
  const asked = { model: "claude-haiku-4-5", max_tokens: 100, messages: hello };
  const ask = (fields = {}, options = {}) => sdk.messages.create({ ...asked, ...fields }, options);
  return {
    whole: () => ask(),
    raw: async () => {
      const { data, response, request_id } = await ask().withResponse();
      return [data, named(response.headers), request_id];
    },
    stream: async () => all(await ask({ stream: true })),
    helper: () => sdk.messages.stream(asked).finalMessage(),
    tools: async () => {
      const first = await ask({ messages: useTool, tools: [claudeTool] });
      const { type, id, name, input } = first.content[0];
      const said = { role: "assistant", content: [{ type, id, name, input }] };
      const result = { role: "user", content: [{ type: "tool_result", tool_use_id: id, content: "A1" }] };
      return [first, await ask({ messages: [...useTool, said, result], tools: [claudeTool] })];
    },
    count: () => sdk.messages.countTokens({ model: "claude-haiku-4-5", messages: hello }),
    models: () => all(sdk.models.list()),
    files: async () => {
      const made = await sdk.beta.files.upload({ file: await toFile(content, "a.bin") });
      const down = await sdk.beta.files.download(made.id);
      return [made.size_bytes, made.filename, digest(await down.arrayBuffer())];
    },
    missing: () => ask({ model: "missing-model" }),
    overloaded: () => ask({ model: "claude-haiku-4-5?fault=529" }),
    errorEvent: async () => all(await ask({ model: "claude-haiku-4-5?fault=error_event", stream: true })),
    retried: () => ask({ model: "c?fault=429&fail_first=1&retry_after_s=0.001" }, { maxRetries: 2 }),
    timedOut: () => ask({ model: "c?latency_ms=60000" }, { timeout: 300 }),
    cut: async () => {
      try {
        return await all(await ask({ model: "c?fault=truncate", stream: true }));
      } catch (error) {
        return { raised: true };
      }
    },
  };
}

async function mistral() {
  const { Mistral } = await import("@mistralai/mistralai");
  const sdk = new Mistral({ serverURL: `${url}/mistral`, apiKey });
  const asked = { model: "mistral-small-latest", messages: hello };
  return {
    whole: () => sdk.chat.complete(asked),
    stream: async () => (await all(await sdk.chat.stream(asked))).map((event) => event.data),
    tools: () => sdk.chat.complete({ ...asked, tools: [tool], toolChoice: "any" }),
    embeddings: () => sdk.embeddings.create({ model: "mistral-embed", inputs: ["a", "b"] }),
    models: () => sdk.models.list(),
    missing: () => sdk.chat.complete({ ...asked, model: "missing-model" }),
    overloaded: () => sdk.chat.complete({ ...asked, model: "mistral-small-latest?fault=503" }),
    cut: async () => {
      try {
        return await all(await sdk.chat.stream({ ...asked, model: "mistral-small-latest?fault=truncate" }));
      } catch (error) {
        return { raised: true };
      }
    },
  };
}

async function aiSteps(model, failing) {
  const { generateObject, generateText, jsonSchema, streamText, tool: makeTool } = await import("ai");
  const tools = { find_gate: makeTool({ inputSchema: jsonSchema(schema), execute: async () => "A1" }) };
  const ask = (fields = {}) => generateText({ model, prompt: "hello ✈", maxRetries: 0, ...fields });
  return {
    whole: async () => {
      const { text, finishReason, usage, response } = await ask();
      return [text, finishReason, usage, response.id, response.modelId];
    },
    stream: async () => {
      const result = streamText({ model, prompt: "hello ✈", maxRetries: 0 });
      return [await all(result.textStream), await result.finishReason, await result.usage];
    },
    tools: async () => {
      const { toolCalls, toolResults, finishReason } = await ask({ prompt: "use the tool", tools });
      return [toolCalls, toolResults, finishReason];
    },
    object: async () => (await generateObject({ model, schema: jsonSchema(schema), prompt: "a gate" })).object,
    missing: () => ask({ model: failing("missing-model") }),
    overloaded: () => ask({ model: failing("c?fault=503") }),
    retried: async () => {
      const limited = failing("c?fault=429&fail_first=1&retry_after_s=0.001");
      return (await ask({ model: limited, maxRetries: 2 })).text;
    },
    errorEvent: async () => {
      const seen = [];
      const model = failing("c?fault=error_event");
      const result = streamText({ model, prompt: "x", maxRetries: 0, onError: ({ error }) => seen.push(error) });
      await all(result.textStream).catch((error) => seen.push(error));
      return seen.map((error) => (error instanceof Error ? describe(error) : error));
    },
  };
}

async function aiOpenai() {
  const { createOpenAI } = await import("@ai-sdk/openai");
  const { embedMany } = await import("ai");
  const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey });
  const embeddings = async () => {
    const model = provider.textEmbeddingModel("text-embedding-3-small");
    return (await embedMany({ model, values: ["a", "b"] })).embeddings;
  };
  const responses = await aiSteps(provider("gpt-5"), (name) => provider(name));
  return {
    ...(await aiSteps(provider.chat("gpt-4o"), (name) => provider.chat(name))),
    embeddings,
    responsesWhole: responses.whole,
    responsesStream: responses.stream,
    responsesTools: responses.tools,
  };
}

async function aiAnthropic() {
  const { createAnthropic } = await import("@ai-sdk/anthropic");
  const provider = createAnthropic({ baseURL: `${url}/v1`, apiKey });
  return aiSteps(provider("claude-haiku-4-5"), (name) => provider(name));
}

const programs = { openai, anthropic, mistral, "ai-openai": aiOpenai, "ai-anthropic": aiAnthropic };
const seen = {};
for (const [name, step] of Object.entries(await programs[vendor]())) {
  try {
    seen[name] = { value: await step() };
  } catch (error) {
    seen[name] = { raised: describe(error) };
  }
}
console.log(JSON.stringify(seen));
