// The official Node package against the local server: every call must come back as the package's own types.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const [base, adapter] = ["tiny-qwen", "ft-probe"];
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Who are you?" }];

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, [base, adapter]);
assert.equal((await client.models.retrieve(adapter)).id, adapter);

const greedy = { messages, temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create({ model: base, ...greedy });
const text = whole.choices[0].message.content;
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
const tuned = await client.chat.completions.create({ model: adapter, ...greedy });
assert.equal(tuned.model, adapter);
assert.notEqual(tuned.choices[0].message.content, text);

const options = { stream: true, stream_options: { include_usage: true } };
let streamed = "", usage;
for await (const chunk of await client.chat.completions.create({ model: base, ...greedy, ...options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const drawn = { model: base, messages, n: 2, seed: 7, temperature: 1.5, max_tokens: 8, logprobs: true, top_logprobs: 2 };
const several = await client.chat.completions.create(drawn);
assert.equal(several.choices.length, 2);
assert.equal(several.choices[1].logprobs.content[0].top_logprobs.length, 2);

const json = await client.chat.completions.create(
  { model: base, messages, max_tokens: 40, seed: 1, response_format: { type: "json_object" } });
assert.equal(typeof JSON.parse(json.choices[0].message.content), "object");

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const wanted = { model: base, messages, tools, tool_choice: "required", max_tokens: 120, seed: 3 };
const called = await client.chat.completions.create(wanted);
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(called.choices[0].message.tool_calls[0].function.name, "weather");
const final = await client.chat.completions.stream(wanted).finalChatCompletion();
assert.deepEqual(final.choices[0].message.tool_calls[0].function.arguments,
  called.choices[0].message.tool_calls[0].function.arguments);

const completion = await client.completions.create({ model: base, prompt: ["The", "A lamp"], max_tokens: 4, logprobs: 1 });
assert.deepEqual(completion.choices.map((choice) => choice.index), [0, 1]);

for (const [wrong, status] of [[{ model: "nobody" }, 404], [{ model: base, temperature: 9 }, 400]]) {
  await assert.rejects(client.chat.completions.create({ messages, ...wrong }), (error) => {
    assert.equal(error.status, status);
    assert.equal(error.type, "invalid_request_error");
    return true;
  });
}
console.log("openai for Node: all calls passed");
