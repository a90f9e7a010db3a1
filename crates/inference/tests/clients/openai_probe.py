"""The official Python package against the local server: every call must come back as the package's own types."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0, timeout=60)
BASE, ADAPTER = "tiny-qwen", "ft-probe"
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]

models = [model.id for model in client.models.list()]
assert models == [BASE, ADAPTER], models
assert client.models.retrieve(ADAPTER).id == ADAPTER

greedy = dict(messages=ASK, temperature=0, max_tokens=12)
whole = client.chat.completions.create(model=BASE, **greedy)
text = whole.choices[0].message.content
assert isinstance(text, str) and whole.choices[0].finish_reason in ("stop", "length")
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
tuned = client.chat.completions.create(model=ADAPTER, **greedy)
assert tuned.model == ADAPTER and tuned.choices[0].message.content != text, "the adapter changes the answer"

stream = client.chat.completions.create(model=BASE, stream=True, stream_options={"include_usage": True}, **greedy)
chunks = list(stream)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert streamed == text, (streamed, text)
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens

several = client.chat.completions.create(model=BASE, messages=ASK, n=3, seed=7, temperature=1.5, max_tokens=8,
                                         logprobs=True, top_logprobs=2)
assert len(several.choices) == 3
assert len(several.choices[0].logprobs.content[0].top_logprobs) == 2
again = client.chat.completions.create(model=BASE, messages=ASK, n=3, seed=7, temperature=1.5, max_tokens=8)
assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]

answer = client.chat.completions.create(model=BASE, messages=ASK, max_tokens=40, seed=1,
                                        response_format={"type": "json_object"})
assert isinstance(json.loads(answer.choices[0].message.content), dict)

tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
called = client.chat.completions.create(model=BASE, messages=ASK, tools=tools, tool_choice="required",
                                        max_tokens=120, seed=3)
call = called.choices[0].message.tool_calls[0]
assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
assert isinstance(json.loads(call.function.arguments), dict)

completion = client.completions.create(model=BASE, prompt=["The", "A lamp"], max_tokens=4, temperature=0, logprobs=1)
assert [choice.index for choice in completion.choices] == [0, 1]
assert completion.choices[0].logprobs.tokens

for wrong, kind in [
    (dict(model="nobody"), openai.NotFoundError),
    (dict(model=BASE, temperature=9), openai.BadRequestError),
    (dict(model=BASE, messages=[{"role": "user", "content": "x " * 5000}]), openai.BadRequestError),
]:
    try:
        client.chat.completions.create(**{"messages": ASK, **wrong})
        raise SystemExit(f"{wrong} was answered")
    except kind as error:
        assert error.body["message"] and error.body["type"] == "invalid_request_error", error.body

# A stream that is left early frees its place: many of them do not fill the server.
for _ in range(20):
    with client.chat.completions.create(model=BASE, messages=ASK, stream=True, max_tokens=500) as stream:
        next(iter(stream))
print(f"openai {openai.__version__}: all calls passed")
