"""Drives a running `sorft-native serve` with the official `openai` client: what it must answer, what it must refuse, and many clients at
once of which some hang up.

    pip install openai
    sorft-native serve --model M --port 8000 &
    python tests/serve/drive.py --url http://127.0.0.1:8000/v1 --pid $! --clients 64 --rounds 5

`--pid` (Linux) prints the server's resident memory after each round. Ends with status 1 at the first thing that is not as it should be.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.request

import openai

QUESTIONS = [
    "Name three fruits.",
    "What is a compiler?",
    "Write a haiku about rain.",
    "Which file of a web framework parses cookies?",
    "Explain binary search in two sentences.",
]


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        line = next(line for line in f if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def messages(text):
    return [{"role": "user", "content": text}]


def basics(client, model):
    """One request at a time."""
    settings = dict(model=model, messages=messages("Say hello."), max_tokens=24, seed=7, n=2, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**settings)
    check(len(whole.choices) == 2 and whole.choices[0].finish_reason in ("stop", "length"), "two choices with their reasons")
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "usage adds up")
    tokens = whole.choices[0].logprobs.content
    check(all(t.logprob <= 0 and len(t.top_logprobs) == 3 for t in tokens), "log-probabilities with three alternatives")
    texts, ends, usage = ["", ""], [None, None], None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    check(texts == [c.message.content for c in whole.choices], "the stream's text is the whole answer's")
    check(ends == [c.finish_reason for c in whole.choices] and usage == whole.usage, "the stream's end is the whole answer's")
    stop = texts[0].split()[-1]
    cut = client.chat.completions.create(**{**settings, "n": 1}, stop=[stop]).choices[0]
    check(cut.finish_reason == "stop" and texts[0].startswith(cut.message.content) and stop not in cut.message.content, "stop strings")
    text = client.completions.create(model=model, prompt=["def add(a, b):", "import os"], max_tokens=8, logprobs=2, temperature=0)
    check(len(text.choices) == 2 and len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens / 2, "two prompts, 8 tokens each")
    extra = client.chat.completions.create(model=model, messages=messages("hi"), max_tokens=4, extra_body={"top_k": 5, "min_p": 0.1})
    check(extra.choices[0].message.content is not None, "top_k and min_p")
    for bad, field in [
        (dict(temperature=-1), "temperature"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(extra_body={"tmperature": 1}), "tmperature"),
        (dict(messages=[{"role": "user", "content": 3}]), "messages[0].content"),
    ]:
        try:
            client.chat.completions.create(**{**dict(model=model, messages=messages("hi")), **bad})
            check(False, f"{bad} is refused")
        except openai.BadRequestError as e:
            check(e.param == field, f"the error of {bad} names {field}, not {e.param}")
    try:
        client.chat.completions.create(model="another", messages=messages("hi"))
        check(False, "another model is refused")
    except openai.NotFoundError:
        pass


async def one(client, model, number, random_, expected):
    """One client: whole, streamed, or hanging up half-way. Returns what became of it."""
    kind = random_.choice(["whole", "stream", "hang up in a stream", "hang up while waiting"])
    question = number % len(QUESTIONS)
    settings = dict(model=model, messages=messages(QUESTIONS[question]), max_tokens=random_.choice([16, 32, 48]), seed=question)
    if kind == "whole":
        answer = (await client.chat.completions.create(**settings)).choices[0]
        text, reason = answer.message.content, answer.finish_reason
    elif kind == "hang up while waiting":
        try:
            await asyncio.wait_for(client.chat.completions.create(**settings), random_.uniform(0.05, 2))
        except asyncio.TimeoutError:
            return "hung up"
        return "finished before hanging up"
    else:
        text, reason = "", None
        async with await client.chat.completions.create(**settings, stream=True) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason or reason
                if kind == "hang up in a stream" and len(text) > 20:
                    return "hung up"
    check(reason in ("stop", "length"), f"{kind}: the answer has an end")
    check(expected[question].startswith(text), f"{kind}: the answer is the one given to a client alone")
    return "answered"


async def round_(url, key, model, clients, seed, expected):
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=600) as client:
        jobs = [one(client, model, i, random.Random(seed * 1000 + i), expected) for i in range(clients)]
        return await asyncio.gather(*jobs)


def health(url, key):
    request = urllib.request.Request(url.removesuffix("/v1") + "/health", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url, api_key=args.key, max_retries=0, timeout=600)
    model = client.models.list().data[0].id
    basics(client, model)
    print(f"{model}: answers, streams, errors as they should be")
    expected = [
        client.chat.completions.create(model=model, messages=messages(q), max_tokens=48, seed=i).choices[0].message.content
        for i, q in enumerate(QUESTIONS)
    ]
    for i in range(args.rounds):
        start = time.time()
        results = asyncio.run(round_(args.url, args.key, model, args.clients, i, expected))
        counts = {kind: results.count(kind) for kind in sorted(set(results))}
        check(len(results) == args.clients, "no request is lost")
        for _ in range(200):
            state = health(args.url, args.key)
            if state["requests"] == 0 and state["cached_tokens"] == 0:
                break
            time.sleep(0.05)
        check(state["requests"] == 0 and state["cached_tokens"] == 0, f"nothing is held after the round: {state}")
        memory = f", {rss_mib(args.pid):.1f} MiB resident" if args.pid else ""
        print(f"round {i + 1}: {counts} in {time.time() - start:.1f} s{memory}", flush=True)


if __name__ == "__main__":
    main()
