#!/usr/bin/env python3
"""Times llama.cpp (the wheel `xllamacpp`) on the CPU with a GGUF file: prefill, and decode alone and with several sequences at once.

    python benches/peers/llama_cpp_cpu.py SmolLM2-135M-Instruct.Q4_1.gguf

Prints one JSON line a measurement. llama.cpp computes with the file's quantised weights: it reads fewer bytes a token than an f32 model
and rounds differently, so this is a peer in speed, not in numbers.
"""

import argparse
import json
import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import xllamacpp


def serve(args, parallel):
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.n_parallel = parallel
    params.n_ctx = parallel * (max(args.tokens, args.prompt_tokens + args.new_tokens) + 64)
    params.n_batch = params.n_ubatch = args.tokens
    params.n_gpu_layers = 0
    params.verbosity = -1
    return xllamacpp.Server(params)


def ask(server, ids, new_tokens):
    """One completion; llama.cpp's own timings."""
    request = {"prompt": ids, "n_predict": new_tokens, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    return answer["timings"]


def report(args, name, rates, **shape):
    line = {"peer": "llama.cpp", "bench": name, "file": os.path.basename(args.model), **shape}
    line |= {"value": round(statistics.median(rates), 2), "unit": "tokens/s", "runs": [round(r, 2) for r in rates], "threads": args.threads}
    print(json.dumps(line | {"load_average": [round(x, 2) for x in os.getloadavg()]}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="prompt of the prefill bench")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="prompt of the decode benches")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    rng = random.Random(0)

    def ids(count):
        return [rng.randrange(100, 30000) for _ in range(count)]

    server = serve(args, 1)
    ask(server, ids(args.tokens), 1)
    rates = [ask(server, ids(args.tokens), 1)["prompt_per_second"] for _ in range(args.repeats)]
    report(args, "prefill", rates, tokens=args.tokens)
    del server
    shape = {"prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens}
    for batch in args.batches:
        server, rates = serve(args, batch), []
        with ThreadPoolExecutor(batch) as pool:
            for _ in range(args.repeats + 1):
                prompts = [ids(args.prompt_tokens) for _ in range(batch)]
                start = time.perf_counter()
                timings = list(pool.map(lambda p, server=server: ask(server, p, args.new_tokens), prompts))
                seconds = time.perf_counter() - start
                # Alone, the server's own decode time; together, the wall clock of all answers, their prefill included.
                rates.append(timings[0]["predicted_per_second"] if batch == 1 else batch * args.new_tokens / seconds)
        report(args, "decode" if batch == 1 else "decode_with_prefill", rates[1:], batch=batch, **shape)
        del server


if __name__ == "__main__":
    main()
