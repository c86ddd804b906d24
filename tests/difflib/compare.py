"""Compares the binary with CPython on many cases, bit for bit.

    python tests/difflib/compare.py target/debug/sorft-native --tasks TASKS.jsonl.gz ... [--cases 20000] [--seed 1]
    python tests/difflib/compare.py target/debug/sorft-native --fixture        # writes tests/difflib/fixture.jsonl (no task files)

A case counts as equal if the reward and every file's similarity are the same doubles.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import pathlib
import sys

import cases as generate
import reference

KINDS = {
    "similarity": (generate.similarity_cases, reference.similarity, "similarity", []),
    "discrete": (generate.similarity_cases, lambda case: reference.similarity(case, discrete=True), "similarity", ["--discrete"]),
    "unidiff": (generate.unidiff_cases, reference.unidiff, "unidiff", []),
}


def expected(job):
    kind, case = job
    return KINDS[kind][1](case)


def describe(case, value, files):
    if value == -1.0:
        return "format errors (-1)"
    if len(files) > 2:
        return "more than two files"
    return "0" if value == 0.0 else "1" if value == 1.0 else "between 0 and 1"


def compare(binary, kind, tasks, n, seed, processes):
    make, _, name, extra = KINDS[kind]
    # As JSON has it: two lone surrogates beside each other are read as one character, here and in Python.
    all_cases = [json.loads(json.dumps(case)) for case in itertools.islice(make(tasks, seed), n)]
    with multiprocessing.Pool(processes) as pool:
        wanted = pool.map(expected, [(kind, case) for case in all_cases], chunksize=16)
    found = generate.run(binary, name, all_cases, extra)
    assert len(found) == len(wanted), (len(found), len(wanted))
    kinds, wrong = collections.Counter(), 0
    for i, (case, (value, files), result) in enumerate(zip(all_cases, wanted, found)):
        kinds[describe(case, value, files)] += 1
        similarities = {f["path"]: f["similarity"] for f in result.get("parts", {}).get("similarities", [])}
        if result.get("reward") != value or (kind != "discrete" and value != -1.0 and similarities != files):
            wrong += 1
            if wrong <= 3:
                path = pathlib.Path(f"mismatch-{kind}-{i}.json")
                path.write_text(json.dumps(case))
                print(f"{kind} {i}: CPython {value} {files}, here {result.get('reward')} {similarities} {result.get('error')} -> {path}")
    print(f"{kind}: {n} cases, {wrong} differ; " + ", ".join(f"{k}: {v}" for k, v in sorted(kinds.items())))
    return wrong


def write_fixture(path):
    lines = []
    for kind, n in (("similarity", 90), ("discrete", 20), ("unidiff", 70)):
        for case in itertools.islice(KINDS[kind][0]([], 7, limit=1500), n):
            case = json.loads(json.dumps(case))
            value, files = KINDS[kind][1](case)
            lines.append(json.dumps({"kind": kind, "case": case, "reward": value, "similarities": files}))
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} cases")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--fixture", action="store_true")
    args = parser.parse_args()
    assert sys.version_info[:2] == (3, 11), "the reference is CPython 3.11"
    if args.fixture:
        return write_fixture(pathlib.Path(__file__).with_name("fixture.jsonl"))
    tasks = [task for path in args.tasks for task in generate.load(path)]
    sys.exit(any([compare(args.binary, kind, tasks, args.cases, args.seed, args.processes) for kind in args.kinds]))


if __name__ == "__main__":
    main()
