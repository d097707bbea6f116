// The official Node clients talk through the gateway, as they come: only the base URL is changed.
// Environment: as for conversation.py.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const { GATE, KEY, POOR_KEY, POORER_KEY, LIMITED_KEY } = process.env;
const hello = [{ role: "user", content: "Hello, how far is the harbour?" }];
const answerText = "The gate is open, take your seat and enjoy the ride.";
const weather = { type: "object", properties: { city: { type: "string" }, days: { type: "integer" } }, required: ["city"] };

// Counts the HTTP requests that a client really sends.
function counted() {
  const counter = { requests: 0 };
  counter.fetch = (...request) => {
    counter.requests += 1;
    return fetch(...request);
  };
  return counter;
}

function openai(apiKey, more = {}) {
  const counter = counted();
  return [new OpenAI({ baseURL: `${GATE}/v1`, apiKey, fetch: counter.fetch, ...more }), counter];
}

function anthropic(apiKey, more = {}) {
  const counter = counted();
  return [new Anthropic({ baseURL: GATE, apiKey, fetch: counter.fetch, ...more }), counter];
}

async function raises(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `${error?.constructor?.name} instead of ${kind.name}: ${error}`);
    return error;
  }
  assert.fail(`${kind.name} was not raised`);
}

const conversations = {
  async openaiPlain() {
    const [client] = openai(KEY);
    const answer = await client.chat.completions.create({ model: "sim-1", messages: hello });
    assert.equal(answer.choices[0].message.content, answerText);
    assert.equal(answer.usage.completion_tokens, 13);
    const { response } = await client.chat.completions.create({ model: "sim-1", messages: hello }).withResponse();
    assert.ok(response.headers.get("x-request-id"));
    assert.ok(Number(response.headers.get("x-credits-remaining")) > 0);
  },

  async openaiStreaming() {
    const [client] = openai(KEY);
    let text = "";
    let last;
    for await (const chunk of await client.chat.completions.create({ model: "sim-1", messages: hello, stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, answerText);
    assert.equal(last.choices[0].finish_reason, "stop");
    const asked = { model: "sim-1", messages: hello, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create(asked)) last = chunk;
    assert.equal(last.usage.completion_tokens, 13);
    const long = { model: "sim-1@tokens=500,chunk-ms=5", messages: hello, stream: true };
    let seen = 0;
    for await (const _ of await client.chat.completions.create(long)) if (++seen === 5) break;
  },

  async openaiTools() {
    const [client] = openai(KEY);
    const tools = [{ type: "function", function: { name: "weather", parameters: weather } }];
    const messages = [{ role: "user", content: "What is the weather in Paris?" }];
    const answer = await client.chat.completions.create({ model: "sim-1", messages, tools });
    const call = answer.choices[0].message.tool_calls[0];
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.equal(JSON.parse(call.function.arguments).city, "Paris");
    messages.push(answer.choices[0].message, { role: "tool", tool_call_id: call.id, content: "22 degrees" });
    const second = await client.chat.completions.create({ model: "sim-1", messages, tools });
    assert.equal(second.choices[0].message.content, answerText);
    const stream = client.chat.completions.stream({ model: "sim-1", messages: messages.slice(0, 1), tools });
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.name, "weather");
  },

  async openaiResponses() {
    const [client] = openai(KEY);
    const answer = await client.responses.create({ model: "sim-1", input: "Hello" });
    assert.equal(answer.output_text, answerText);
    let text = "";
    let last;
    for await (const event of await client.responses.create({ model: "sim-1", input: "Hello", stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(text, answerText);
    assert.equal(last.type, "response.completed");
  },

  async openaiOthers() {
    const [client] = openai(KEY);
    const models = await client.models.list();
    assert.ok(models.data.length > 0);
    const vectors = await client.embeddings.create({ model: "sim-1", input: ["one", "two"] });
    assert.equal(vectors.data[1].embedding[0], 1);
    const images = await client.images.generate({ model: "sim-1", prompt: "A gate" });
    assert.ok(images.data[0].b64_json);
  },

  async openaiErrors() {
    const [client, counter] = openai(KEY);
    await raises(OpenAI.NotFoundError, () => client.chat.completions.create({ model: "missing-model", messages: hello }));
    await raises(OpenAI.BadRequestError, () => client.chat.completions.create({ model: "sim-1", messages: [] }));
    assert.equal(counter.requests, 2);
    const [stranger, strangers] = openai("fg_live_nobody");
    await raises(OpenAI.AuthenticationError, () => stranger.chat.completions.create({ model: "sim-1", messages: hello }));
    assert.equal(strangers.requests, 1);
  },

  async openaiOutOfCredits() {
    const [client, counter] = openai(POOR_KEY);
    await client.chat.completions.create({ model: "sim-1", messages: hello });
    for (const stream of [false, true]) {
      counter.requests = 0;
      const error = await raises(OpenAI.APIError, () => client.chat.completions.create({ model: "sim-1", messages: hello, stream }));
      assert.equal(error.status, 402);
      assert.equal(error.type, "insufficient_quota");
      assert.equal(error.code, "insufficient_credits");
      assert.equal(counter.requests, 1);
    }
  },

  async openaiRateLimited() {
    const [client, counter] = openai(LIMITED_KEY, { maxRetries: 0 });
    for (let turn = 0; turn < 2; turn++) await client.chat.completions.create({ model: "sim-1", messages: hello });
    const error = await raises(OpenAI.RateLimitError, () => client.chat.completions.create({ model: "sim-1", messages: hello }));
    assert.ok(Number(error.headers.get("retry-after")) > 0);
    assert.equal(counter.requests, 3);
  },

  async anthropicPlain() {
    const [client] = anthropic(KEY);
    const answer = await client.messages.create({ model: "claude-sim", max_tokens: 100, messages: hello });
    assert.equal(answer.content[0].text, answerText);
    assert.equal(answer.usage.output_tokens, 13);
    const count = await client.messages.countTokens({ model: "claude-sim", messages: hello });
    assert.ok(count.input_tokens > 0);
  },

  async anthropicStreaming() {
    const [client] = anthropic(KEY);
    const final = await client.messages.stream({ model: "claude-sim", max_tokens: 100, messages: hello }).finalMessage();
    assert.equal(final.content[0].text, answerText);
    assert.equal(final.stop_reason, "end_turn");
  },

  async anthropicTools() {
    const [client] = anthropic(KEY);
    const tools = [{ name: "weather", input_schema: weather }];
    const messages = [{ role: "user", content: "Use the weather tool for Paris" }];
    const asked = { model: "claude-sim", max_tokens: 100, messages, tools };
    const answer = await client.messages.create(asked);
    assert.equal(answer.stop_reason, "tool_use");
    assert.equal(answer.content[0].input.city, "Paris");
    const final = await client.messages.stream(asked).finalMessage();
    assert.deepEqual(final.content[0].input, answer.content[0].input);
    messages.push({ role: "assistant", content: answer.content });
    messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: answer.content[0].id, content: "22 degrees" }] });
    const second = await client.messages.create(asked);
    assert.equal(second.content[0].text, answerText);
  },

  async anthropicErrors() {
    const [client, counter] = anthropic(KEY);
    await raises(Anthropic.NotFoundError, () => client.messages.create({ model: "missing-model", max_tokens: 9, messages: hello }));
    await raises(Anthropic.BadRequestError, () => client.messages.create({ model: "claude-sim", max_tokens: 9, messages: [] }));
    assert.equal(counter.requests, 2);
    const [stranger] = anthropic("fg_live_nobody");
    await raises(Anthropic.AuthenticationError, () => stranger.messages.create({ model: "claude-sim", max_tokens: 9, messages: hello }));
  },

  async anthropicOutOfCredits() {
    const [client, counter] = anthropic(POORER_KEY);
    await client.messages.create({ model: "claude-sim", max_tokens: 9, messages: hello });
    counter.requests = 0;
    const error = await raises(Anthropic.APIError, () => client.messages.create({ model: "claude-sim", max_tokens: 9, messages: hello }));
    assert.equal(error.status, 402);
    assert.equal(error.error.error.type, "billing_error");
    assert.equal(counter.requests, 1);
  },
};

let failed = 0;
for (const [name, conversation] of Object.entries(conversations)) {
  try {
    await conversation();
    console.log(`ok      node ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  node ${name}\n${error.stack}`);
  }
}
console.log(`${Object.keys(conversations).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
