#!/usr/bin/env python3
"""Sets the program's benchmarks beside others' of the same names: one table, and JSON.

    python benches/peers/compare.py --ours bench-kernels.txt bench-model.txt --peers peers.jsonl [--json table.json]

`--ours`: JSON lines of `sorft-native bench --json`; `--peers`: those of `torch_device.py`. A row has the program's rate, its part of the floor,
the best peer's rate and name, their ratio, and the goal where the project has set itself one. Nothing is timed here.
"""

import argparse
import json
import sys

# What is to be reached on an H200: of the floor, of the best peer, so much in the row's unit, or of another row of ours (of the same shape, or that very one). By the
# beginning of a row's name; the first that fits counts.
GOALS = [
    ("rmsnorm forward", "floor", 0.90),
    ("rmsnorm backward", "floor", 0.80),
    ("swiglu forward", "floor", 0.90),
    ("swiglu backward", "floor", 0.80),
    ("linear with rank 16", "linear forward", 0.9),
    ("model decode, a group of 16 on 4096", "model decode, 16 prompts of 4096", 5.0),
    ("adamw 64M, 8-bit", None, None),
    ("adamw 64M", "floor", 0.88),
    ("attention forward", "peer", 1.0),
    ("attention backward", "peer", 0.8),
    ("head forward", "GFLOP/s", 600e3),
    ("head backward", "GFLOP/s", 550e3),
    ("model decode alone", "floor", 0.75),
    ("model decode at batch 256", "floor", 0.60),
    ("model training step", "peer", 1.5),
    ("model LoRA training step", "peer", 1.5),
    ("model GRPO step", "peer", 3.0),
]


def lines(paths):
    for path in paths:
        with open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.startswith("{"):
                    continue
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    sys.exit(f"{path}:{number}: {error}; a line of JSON was expected")


def goal(row, rates):
    """What was set, and whether it is reached; None where nothing was set or nothing is there to hold it against."""
    begin, kind, least = next((g for g in GOALS if row["name"].startswith(g[0])), ("", None, None))
    reached = {"floor": row["of_floor"], "peer": row["ratio"], row["unit"]: row["rate"]}.get(kind)
    other = rates.get(f"{kind}{row['name'][len(begin):]}")
    reached = row["rate"] / other if other else reached
    return None if kind is None or reached is None else (f"{least:g} {kind}", reached >= least)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", nargs="+", required=True)
    parser.add_argument("--peers", nargs="*", default=[])
    parser.add_argument("--json", help="where the rows are written as JSON lines")
    args = parser.parse_args()
    best = {}
    for line in lines(args.peers):
        if line["rate"] > best.get(line["name"], {"rate": 0})["rate"]:
            best[line["name"]] = line
    rows = []
    for line in lines(args.ours):
        peer = best.get(line["name"])
        row = {"name": line["name"], "unit": line["unit"], "rate": line["rate"], "seconds": line["seconds"]}
        row["of_floor"] = line["rate"] / line["floor"] if line.get("floor") else None
        row |= {"peer": peer["peer"], "peer_rate": peer["rate"], "ratio": line["rate"] / peer["rate"]} if peer else {"peer": None, "ratio": None}
        rows.append(row)
    if not rows:
        sys.exit(f"no benchmark in {', '.join(args.ours)}")
    rates = {r["name"]: r["rate"] for r in rows}
    wide = max(len(r["name"]) for r in rows)
    print(f"{'':{wide}} {'rate':>10} {'':8} {'floor':>6} {'peer':>10} {'ratio':>6}  goal")
    for r in rows:
        floor = f"{100 * r['of_floor']:.0f} %" if r["of_floor"] else ""
        peer = f"{r['peer_rate']:10.1f} {r['ratio']:5.2f}x" if r["peer"] else f"{'':17}"
        set_goal = goal(r, rates)
        r["goal"], r["reached"] = set_goal or (None, None)
        word = "" if set_goal is None else f"{set_goal[0]}: {'reached' if set_goal[1] else 'NOT reached'}"
        print(f"{r['name']:{wide}} {r['rate']:10.1f} {r['unit']:8} {floor:>6} {peer}  {word}{'  (' + r['peer'] + ')' if r['peer'] else ''}")
    alone = sorted(set(best) - {r["name"] for r in rows})
    if alone:
        print("timed by peers only: " + "; ".join(f"{n} {best[n]['rate']:.1f} {best[n]['unit']}" for n in alone))
    if args.json:
        with open(args.json, "w") as out:
            out.writelines(json.dumps(r) + "\n" for r in rows)


if __name__ == "__main__":
    main()
