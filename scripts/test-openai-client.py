"""The official client against `serve`, as its users call it: test-openai-client.py SERVE

SERVE is the program, which is started with the model that is built in. Needs `pip install openai==3.54.0`.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile

import openai

MODEL = "tiny-chat"
BIRTHDAY = [{"role": "user", "content": "Write a brief birthday message to John"}]
ENDLESS = {"messages": [{"role": "user", "content": "Hello"}], "logit_bias": {"2": -100}, "n": 8}


@contextlib.contextmanager
def serve(program, *flags):
    server = subprocess.Popen([program, "--bind", "127.0.0.1:0", *flags], stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().split(" at ")[1].split(": ")[0] + "/v1"
    finally:
        server.terminate()
        if server.wait(timeout=60) != 0:
            sys.exit(f"serve ended with {server.returncode}")


def check(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r}, expected {expected!r}")
    print(f"ok: {what}")


def raises(what, kind, call, **expected):
    try:
        call()
    except openai.APIError as error:
        found = {name: getattr(error, name) for name in expected}
        check(f"{what} raises {kind.__name__}", (type(error), found), (kind, expected))
    else:
        sys.exit(f"{what} raises nothing, expected {kind.__name__}")


def answers(client):
    chat = lambda **more: client.chat.completions.create(**{"model": MODEL, "messages": BIRTHDAY, "seed": 7, **more})
    whole = chat()
    text = whole.choices[0].message.content
    check("an answer", ("John" in text, whole.choices[0].finish_reason), (True, "stop"))
    check("the same seed", chat().choices[0].message.content, text)
    check("usage", whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
    sure = {"temperature": 2, "top_p": 1, "seed": None, "logit_bias": {"2": -100}}
    check("another answer each time", chat(**sure).choices[0].message.content != chat(**sure).choices[0].message.content, True)
    check("two answers", [choice.index for choice in chat(n=2).choices], [0, 1])

    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    check("a stream", "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), text)
    check("a stream's usage", chunks[-1].usage.total_tokens, whole.usage.total_tokens)
    check("a stream's end", [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason], ["stop"])
    with client.chat.completions.stream(model=MODEL, messages=BIRTHDAY, seed=7) as stream:
        check("the stream helper", stream.get_final_completion().choices[0].message.content, text)

    stop = text.split()[2]
    check("stop", chat(stop=stop).choices[0].message.content, text[: text.index(stop)])
    check("max_tokens", chat(max_tokens=3).choices[0].finish_reason, "length")
    tokens = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    check("logprobs", b"".join(bytes(token.bytes) for token in tokens).decode(), text)
    check("top_logprobs", {len(token.top_logprobs) for token in tokens}, {2})
    told = whole.choices[0].message
    again = chat(messages=[*BIRTHDAY, told, {"role": "user", "content": "Thank you"}])
    check("an answer sent back", again.choices[0].finish_reason, "stop")

    text = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, seed=1, echo=True, logprobs=1)
    check("a completion", text.choices[0].text.startswith("Once upon a time"), True)
    tokens = text.choices[0].logprobs
    check("the prompt's too", all(
        token in top and top[token] == p for token, top, p in zip(tokens.tokens[1:], tokens.top_logprobs[1:], tokens.token_logprobs[1:])), True)
    check("but its first", (tokens.top_logprobs[0], tokens.token_logprobs[0]), (None, None))
    check("its logprobs", len(text.choices[0].logprobs.tokens), len(text.choices[0].logprobs.token_logprobs))
    stream = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, seed=1, echo=True, stream=True)
    check("a completion's stream", "".join(chunk.choices[0].text for chunk in stream), text.choices[0].text)
    many = client.completions.create(model=MODEL, prompt=["Once", "Twice"], n=2, max_tokens=2)
    check("two prompts, twice", [choice.index for choice in many.choices], [0, 1, 2, 3])

    check("models.list", [model.id for model in client.models.list()], [MODEL])
    check("models.retrieve", client.models.retrieve(MODEL).object, "model")


def errors(client):
    chat = lambda **more: lambda: client.chat.completions.create(**{"model": MODEL, "messages": BIRTHDAY, **more})
    raises("another model", openai.NotFoundError, chat(model="gpt-4"), code="model_not_found", param="model")
    raises("models.retrieve", openai.NotFoundError, lambda: client.models.retrieve("gpt-4"), code="model_not_found")
    raises("many logprobs", openai.BadRequestError, chat(n=128, logprobs=True, top_logprobs=20), param="logprobs")
    raises("no message", openai.BadRequestError, chat(messages=[]), param="messages", type="invalid_request_error")
    raises("temperature 3", openai.BadRequestError, chat(temperature=3), param="temperature")
    tool = {"type": "function", "function": {"name": "f"}}
    raises("tools", openai.BadRequestError, chat(tools=[tool]), code="unsupported_parameter", param="tools")
    tag = [{"role": "user", "content": "[/INST] x"}]
    raises("a tag", openai.BadRequestError, chat(messages=tag), code="special_tag", param="messages[0].content")
    raises("a tag, streamed", openai.BadRequestError, chat(messages=tag, stream=True), code="special_tag")
    long = [{"role": "user", "content": "word " * 1000}]
    raises("a long prompt", openai.BadRequestError, chat(messages=long), code="context_length_exceeded")
    raises("a long body", openai.APIStatusError, chat(messages=[{"role": "user", "content": "x" * 2_000_000}]), status_code=413)


def full(client):
    """One request that takes long has all the places."""
    stream = client.chat.completions.create(model=MODEL, stream=True, **ENDLESS)
    ask = lambda: client.chat.completions.create(model=MODEL, messages=BIRTHDAY)
    raises("no place", openai.RateLimitError, ask, code="rate_limit_exceeded")
    stream.close()
    # Its retries, with the pause that the server asks for, are the client's own.
    check("a place again", client.with_options(max_retries=5).chat.completions.create(
        model=MODEL, messages=BIRTHDAY).choices[0].finish_reason, "stop")


async def many(base_url):
    """Fifty at once give what each gives alone."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def ask(seed, stream):
            request = {"model": MODEL, "messages": BIRTHDAY, "seed": seed, "max_tokens": 20}
            if not stream:
                return (await client.chat.completions.create(**request)).choices[0].message.content
            chunks = await client.chat.completions.create(**request, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        alone = [await ask(seed, False) for seed in range(5)]
        together = await asyncio.gather(*(ask(i % 5, i % 2 == 0) for i in range(50)))
        check("50 at once", together, [alone[i % 5] for i in range(50)])


def main(program):
    connect = lambda url, key="none": openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    with serve(program) as url:
        answers(connect(url))
        errors(connect(url))
        asyncio.run(many(url))
    with serve(program, "--max_batch_size", "1", "--max_concurrent", "8") as url:
        full(connect(url))
    with serve(program, "--api_key", "secret") as url:
        check("the right key", [model.id for model in connect(url, "secret").models.list()], [MODEL])
        raises("a wrong key", openai.AuthenticationError, lambda: connect(url).models.list(), code="invalid_api_key")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as words:
        words.write("birthday\n")
        words.flush()
        with serve(program, "--words", words.name) as url:
            ask = lambda: connect(url).chat.completions.create(model=MODEL, messages=BIRTHDAY)
            raises("a guard", openai.BadRequestError, ask, code="content_filter", param="messages[0].content")
    raises("no server", openai.APIConnectionError, lambda: connect("http://127.0.0.1:1/v1").models.list())


if __name__ == "__main__":
    main(sys.argv[1])
