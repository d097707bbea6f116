"""The official Python clients talk through the gateway, as they come: only the base URL is changed.

Environment: GATE (http://host:port), KEY (plenty of credits), POOR_KEY (one credit), POORER_KEY (one credit),
LIMITED_KEY (two requests a minute).
"""

import os
import sys
import traceback

import anthropic
import openai

GATE = os.environ["GATE"]
HELLO = [{"role": "user", "content": "Hello, how far is the harbour?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
ANSWER = "The gate is open, take your seat and enjoy the ride."


class Counted:
    """Counts the HTTP requests that a client really sends."""

    def __init__(self, http_client_class):
        self.requests = 0
        self.http_client = http_client_class(event_hooks={"request": [self._count]})

    def _count(self, _request):
        self.requests += 1


def openai_client(key, **settings):
    counted = Counted(openai.DefaultHttpxClient)
    client = openai.OpenAI(base_url=f"{GATE}/v1", api_key=key, http_client=counted.http_client, **settings)
    return client, counted


def anthropic_client(key, **settings):
    counted = Counted(anthropic.DefaultHttpxClient)
    client = anthropic.Anthropic(base_url=GATE, api_key=key, http_client=counted.http_client, **settings)
    return client, counted


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def openai_plain():
    client, _ = openai_client(os.environ["KEY"])
    answer = client.chat.completions.create(model="sim-1", messages=HELLO)
    assert answer.choices[0].message.content == ANSWER, answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 13 and answer.usage.prompt_tokens > 0, answer.usage
    raw = client.chat.completions.with_raw_response.create(model="sim-1", messages=HELLO)
    assert raw.headers["x-request-id"] and float(raw.headers["x-credits-remaining"]) > 0, raw.headers


def openai_streaming():
    client, _ = openai_client(os.environ["KEY"])
    stream = client.chat.completions.create(model="sim-1", messages=HELLO, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop", "the chunk with the usage was not asked for"
    stream = client.chat.completions.create(
        model="sim-1", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert list(stream)[-1].usage.completion_tokens == 13
    # A client that has heard enough.
    stream = client.chat.completions.create(model="sim-1@tokens=500,chunk-ms=5", messages=HELLO, stream=True)
    for _, _chunk in zip(range(5), stream):
        pass
    stream.close()


def openai_length():
    client, _ = openai_client(os.environ["KEY"])
    answer = client.chat.completions.create(model="sim-1", messages=HELLO, max_completion_tokens=4)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 4, answer


def openai_tools():
    client, _ = openai_client(os.environ["KEY"])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(model="sim-1", messages=messages, tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls", answer
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and "Paris" in call.function.arguments, call
    messages.append(answer.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "22 degrees"})
    answer = client.chat.completions.create(model="sim-1", messages=messages, tools=tools)
    assert answer.choices[0].message.content == ANSWER
    with client.chat.completions.stream(model="sim-1", messages=messages[:1], tools=tools) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "weather", final


def openai_responses():
    client, _ = openai_client(os.environ["KEY"])
    answer = client.responses.create(model="sim-1", input="Hello")
    assert answer.output_text == ANSWER and answer.usage.output_tokens == 13, answer
    events = list(client.responses.create(model="sim-1", input="Hello", stream=True))
    assert events[-1].type == "response.completed", events[-1]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    answer = client.responses.create(model="sim-1", input="Hello", max_output_tokens=3)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens", answer


def openai_others():
    client, _ = openai_client(os.environ["KEY"])
    assert [model.id for model in client.models.list()]
    vectors = client.embeddings.create(model="sim-1", input=["one", "two"])
    assert len(vectors.data) == 2 and vectors.data[0].embedding[0] == 1.0, vectors
    images = client.images.generate(model="sim-1", prompt="A gate", n=2)
    assert len(images.data) == 2 and images.data[0].b64_json
    text = client.completions.create(model="sim-1", prompt="The gate", max_tokens=4)
    assert text.choices[0].finish_reason == "length", text


def openai_errors():
    client, counted = openai_client(os.environ["KEY"])
    error = raises(openai.NotFoundError, lambda: client.chat.completions.create(model="missing-model", messages=HELLO))
    assert "does not exist" in error.message, error
    raises(openai.BadRequestError, lambda: client.chat.completions.create(model="sim-1", messages=[]))
    assert counted.requests == 2, "neither is worth a retry"
    client, counted = openai_client("fg_live_nobody")
    error = raises(openai.AuthenticationError, lambda: client.chat.completions.create(model="sim-1", messages=HELLO))
    assert counted.requests == 1 and error.status_code == 401


def openai_out_of_credits():
    client, counted = openai_client(os.environ["POOR_KEY"])
    client.chat.completions.create(model="sim-1", messages=HELLO)
    for stream in (False, True):
        counted.requests = 0
        error = raises(
            openai.APIStatusError,
            lambda: client.chat.completions.create(model="sim-1", messages=HELLO, stream=stream),
        )
        assert error.status_code == 402, error
        assert error.type == "insufficient_quota" and error.code == "insufficient_credits", error.body
        assert counted.requests == 1, f"it was tried {counted.requests} times"


def openai_rate_limited():
    client, counted = openai_client(os.environ["LIMITED_KEY"], max_retries=0)
    for _ in range(2):
        client.chat.completions.create(model="sim-1", messages=HELLO)
    error = raises(openai.RateLimitError, lambda: client.chat.completions.create(model="sim-1", messages=HELLO))
    assert int(error.response.headers["retry-after"]) > 0, error.response.headers
    assert counted.requests == 3


def anthropic_plain():
    client, _ = anthropic_client(os.environ["KEY"])
    answer = client.messages.create(model="claude-sim", max_tokens=100, messages=HELLO)
    assert answer.content[0].text == ANSWER and answer.stop_reason == "end_turn", answer
    assert answer.usage.output_tokens == 13 and answer.usage.input_tokens > 0, answer.usage
    answer = client.messages.create(model="claude-sim", max_tokens=4, messages=HELLO)
    assert answer.stop_reason == "max_tokens", answer
    assert client.messages.count_tokens(model="claude-sim", messages=HELLO).input_tokens > 0


def anthropic_streaming():
    client, _ = anthropic_client(os.environ["KEY"])
    with client.messages.stream(model="claude-sim", max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert final.usage.output_tokens == 13 and final.stop_reason == "end_turn", final


def anthropic_tools():
    client, _ = anthropic_client(os.environ["KEY"])
    tools = [{"name": "weather", "description": "The weather", "input_schema": WEATHER}]
    messages = [{"role": "user", "content": "Use the weather tool for Paris"}]
    answer = client.messages.create(model="claude-sim", max_tokens=100, messages=messages, tools=tools)
    call = answer.content[0]
    assert answer.stop_reason == "tool_use" and call.name == "weather" and call.input["city"] == "Paris", answer
    messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees"}
    messages.append({"role": "user", "content": [result]})
    answer = client.messages.create(model="claude-sim", max_tokens=100, messages=messages, tools=tools)
    assert answer.content[0].text == ANSWER, answer
    with client.messages.stream(model="claude-sim", max_tokens=100, messages=messages[:1], tools=tools) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == call.input, final


def anthropic_errors():
    client, counted = anthropic_client(os.environ["KEY"])
    create = lambda **more: client.messages.create(max_tokens=10, **more)
    raises(anthropic.NotFoundError, lambda: create(model="missing-model", messages=HELLO))
    raises(anthropic.BadRequestError, lambda: create(model="claude-sim", messages=[]))
    assert counted.requests == 2
    client, counted = anthropic_client("fg_live_nobody")
    error = raises(anthropic.AuthenticationError, lambda: create(model="claude-sim", messages=HELLO))
    assert error.body["error"]["type"] == "authentication_error" and counted.requests == 1, error.body


def anthropic_out_of_credits():
    client, counted = anthropic_client(os.environ["POORER_KEY"])
    client.messages.create(model="claude-sim", max_tokens=10, messages=HELLO)
    counted.requests = 0
    error = raises(
        anthropic.APIStatusError,
        lambda: client.messages.create(model="claude-sim", max_tokens=10, messages=HELLO),
    )
    assert error.status_code == 402 and error.body["error"]["type"] == "billing_error", error.body
    assert error.body["type"] == "error" and error.body["request_id"], error.body
    assert counted.requests == 1, f"it was tried {counted.requests} times"


CONVERSATIONS = [
    value for name, value in list(globals().items()) if name.startswith(("openai_", "anthropic_")) and not name.endswith("_client")
]


def main():
    failed = 0
    for conversation in CONVERSATIONS:
        try:
            conversation()
            print(f"ok      python {conversation.__name__}", flush=True)
        except Exception:  # every conversation is tried
            failed += 1
            print(f"FAILED  python {conversation.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{len(CONVERSATIONS) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


main()
