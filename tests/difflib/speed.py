"""How long CPython and the binary take for the similarity of two patches of one length, in one run, on one thread.

    python tests/difflib/speed.py target/debug/sorft-native --tasks TASKS.jsonl.gz [--longest-cpython 12000]

A pair is a real patch (hunks of several tasks' gold patches, one after another, cut to the length) and the same with about a tenth of its
lines edited. The binary's time is that of a process that judges `--repeats` such pairs, all with other gold patches (so that no index is
shared), less that of a process that judges as many pairs of one line, which is what starting it and reading JSON cost. CPython gets three of them, of
the longest, which takes it minutes, one.
"""

import argparse
import difflib
import json
import os
import random
import subprocess
import time

import cases as generate


def patch(rng, tasks, chars):
    text = ""
    while len(text) < chars:
        text += "\n".join(line for line in rng.choice(tasks)["patch"].split("\n") if line[:1] in ("@", " ", "+", "-") and line[:4] not in ("+++ ", "--- ")) + "\n"
    return text[:chars]


def edited(rng, text):
    lines = text.split("\n")
    for _ in range(max(1, len(lines) // 10)):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([lines[at].replace("self", "this"), lines[at][: len(lines[at]) // 2], rng.choice(lines), lines[at] + " # " + rng.choice(generate.WORDS)])
    return "\n".join(lines)


def as_diff(text):
    """A unified diff whose one hunk holds the text as inserted lines: what the binary then compares is as long as the text."""
    lines = text.split("\n")
    return f"--- a/x\n+++ b/x\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)


def ours(binary, pairs):
    lines = "".join(json.dumps({"oracle_patches": [as_diff(b)], "predicted_patches": [as_diff(a)]}) + "\n" for a, b in pairs)
    start = time.perf_counter()
    done = subprocess.run([binary, "reward", "--kind", "unidiff"], input=lines.encode(), stdout=subprocess.PIPE, check=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    return seconds, [json.loads(line)["reward"] for line in done.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--longest-cpython", type=int, default=12_000, help="longer pairs are not given to CPython")
    args = parser.parse_args()
    tasks = [task for path in args.tasks for task in generate.load(path)]
    rng = random.Random(5)
    print("| characters | CPython 3.11 | here | ratio |\n|---|---|---|---|")
    for chars in (700, 2400, 6000, 12_000, 50_000):
        pairs = [(edited(rng, text), text) for text in (patch(rng, tasks, chars) for _ in range(args.repeats))]
        base = min(ours(args.binary, [("x", "x")] * args.repeats)[0] for _ in range(3))
        runs = [ours(args.binary, pairs) for _ in range(3)]
        here = (min(seconds for seconds, _ in runs) - base) / args.repeats
        if chars > args.longest_cpython:
            print(f"| {chars} | not run | {here * 1e3:.2f} ms | |", flush=True)
            continue
        cpython = []
        for (a, b), value in list(zip(pairs, runs[0][1]))[: 3 if chars <= 12_000 else 1]:
            # The same texts as the binary compares: a hunk's header and its lines.
            a, b = (as_diff(t).split("\n", 2)[2].strip() for t in (a, b))
            start = time.perf_counter()
            ratio = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
            cpython.append(time.perf_counter() - start)
            assert ratio == value, (ratio, value)
        mean = sum(cpython) / len(cpython)
        print(f"| {chars} | {mean * 1e3:.1f} ms | {here * 1e3:.2f} ms | {mean / here:.0f} |", flush=True)


if __name__ == "__main__":
    main()
