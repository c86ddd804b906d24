"""Cases for the comparison: lines as `reward --kind similarity` and `--kind unidiff` read them. Keyed by a seed.

Texts come from task files (`--tasks`, which are not part of the repository) or, without any, from the generator below.
"""

import gzip
import json
import random
import subprocess

SEPARATORS = ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
ODD = ["é", "ß", "漢", "😀", "\U0001d54f", "\u00a0", "\u3000", "\t", "\x1f", "\x00", "\ud83d", "\ude00", "\ufeff", "e\u0301"]
WORDS = "self value return if not in None for x y = == ( ) [ ] : , . def class import data path result 0 1".split()


def synthetic(rng, lines):
    out = []
    for _ in range(lines):
        out.append(rng.choice(["", "    ", "        "]) + " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 7))))
    return "\n".join(out) + ("\n" if rng.random() < 0.8 else "")


def load(path):
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as f:
        for line in f:
            task = json.loads(line)
            if task.get("patch") and task.get("files"):
                yield task


def applied(old, hunks):
    """A file's text after the hunks of a patch (which fit exactly)."""
    lines, out, at = old.split("\n"), [], 0
    for start, body in hunks:
        out += lines[at:start]
        at = start
        for line in body:
            if line[:1] in " -":
                at += 1
            if line[:1] in " +":
                out.append(line[1:])
    return "\n".join(out + lines[at:])


def gold(task):
    """{path: (old, new)} of a task whose patch only modifies files."""
    files, path, hunks = {}, None, []
    for line in task["patch"].split("\n"):
        if line.startswith("--- a/"):
            path = line[6:]
            files[path] = []
        elif line.startswith("@@ ") and path:
            start, _, n = line.split()[1][1:].partition(",")
            files[path].append((int(start) - (n != "0"), []))
        elif path and files[path] and line[:1] in (" ", "+", "-") and not line.startswith(("+++ ", "--- ")):
            files[path][-1][1].append(line)
        elif line.startswith("diff --git"):
            path = None
    return {p: (task["files"][p], applied(task["files"][p], h)) for p, h in files.items() if p in task["files"]}


def edited(rng, text):
    """A text with a few of its lines changed, moved, repeated or taken out."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 3, 6, 20])):
        at, n = rng.randrange(len(lines)), rng.randint(1, 4)
        kind = rng.randrange(8)
        if kind == 0:
            del lines[at : at + n]
            lines = lines or [""]
        elif kind == 1:
            lines[at:at] = [rng.choice(lines) for _ in range(n)]
        elif kind == 2:
            lines[at : at + n] = [line.replace(" ", "  ", 1) for line in lines[at : at + n]]
        elif kind == 3:
            lines[at] += rng.choice(ODD + [" # " + rng.choice(WORDS)])
        elif kind == 4:
            lines[at] = lines[at][: len(lines[at]) // 2] + rng.choice(WORDS) + lines[at][len(lines[at]) // 2 :]
        elif kind == 5:
            lines[at:at] = lines[at : at + n]
        elif kind == 6:
            lines[at] += rng.choice(SEPARATORS) + rng.choice(WORDS)
        else:
            lines[at:at] = [synthetic(rng, 1).strip("\n") for _ in range(n)]
    return "\n".join(lines)


def block(path, search, replace, language="python"):
    return f"```{language}\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```"


def blocks(rng, path, old, new):
    """Blocks that turn old into new, or something like it."""
    import difflib

    a, b = old.split("\n"), new.split("\n")
    if len(a) > 1500 or rng.random() < 0.1:
        return [block(path, old, new)]
    out = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a, b).get_opcodes():
        if tag == "equal":
            continue
        up, down = min(rng.randint(0, 3), i1), rng.randint(0, 3)
        search, replace = a[i1 - up : i2 + down], a[i1 - up : i1] + b[j1:j2] + a[i2 : i2 + down]
        out.append(block(path, "\n".join(search), "\n".join(replace), rng.choice(["python", "", "py thon"])))
    return out


MALFORMED = [
    lambda r, s: s.replace("</think>", "", 1),
    lambda r, s: s + r.choice(["<think>", "</solution>", "<solution>x</solution>"]),
    lambda r, s: s.replace("<<<<<<< SEARCH", r.choice(["<<<<<< SEARCH", "<<<<<<< SEARCH ", "<<<<<<< search"]), 1),
    lambda r, s: s.replace("=======", "======", 1),
    lambda r, s: s.replace(">>>>>>> REPLACE\n```", r.choice([">>>>>>> REPLACE", ">>>>>>> REPLACE```", ">>>>>>> REPLACE\n``"]), 1),
    lambda r, s: s.replace("### ", r.choice(["###", "## ", "####  "]), 1),
    lambda r, s: s.replace("```", "````", r.randint(1, 3)),
    lambda r, s: s.replace("```\n```", "", 1).replace("```\n\n```python\n", "", 1),
    lambda r, s: s.replace("\n", r.choice(SEPARATORS)),
    lambda r, s: s.replace("\n", "\r\n"),
    lambda r, s: s[: r.randrange(len(s))],
    lambda r, s: s.replace("reasons", r.choice(["", " ", "\x1c\u3000\x85", "\u200b", "<", "``` ### a"])),
    lambda r, s: "</think>" + s.replace("</think>", "", 1),
    lambda r, s: s.replace("=======", "=======\n=======", 1),
    lambda r, s: s.replace("\n```", " \n```", 1),
]


def completion(rng, edits):
    rng.shuffle(edits) if rng.random() < 0.1 else None
    space = rng.choice(["\n", "", "\n\n", "\x1c", "\u3000\n"])
    parts = [f"<think>{space}reasons{space}</think>", f"<solution>{space}" + "\n".join(edits) + f"{space}</solution>"]
    if rng.random() < 0.1:
        parts.reverse()
    text = rng.choice(["", "Well.\n"]) + "\n".join(parts)
    return rng.choice(MALFORMED)(rng, text) if rng.random() < 0.25 else text


def sources(tasks, rng):
    """Endless {path: (old, new)}."""
    while True:
        if tasks and rng.random() < 0.7:
            yield gold(rng.choice(tasks))
            continue
        files = {}
        for i in range(rng.choice([1, 1, 1, 2, 3, 5])):
            old = rng.choice(SEPARATORS).join(synthetic(rng, rng.choice([0, 1, 3, 10, 40])) for _ in range(rng.choice([1, 1, 3])))
            if rng.random() < 0.1:
                unit = synthetic(rng, rng.randint(1, 3))
                old = unit * rng.randint(1, 120)
            files[f"p/{i}.py"] = (old, edited(rng, old) if rng.random() < 0.9 else old)
        yield files


def similarity_cases(tasks, seed, limit=12_000):
    rng = random.Random(seed)
    for pairs in sources(tasks, rng):
        context = {p: old for p, (old, _) in pairs.items()}
        oracle = {p: new for p, (_, new) in pairs.items()}
        if rng.random() < 0.05:
            oracle["new.py"] = synthetic(rng, 4)
        for _ in range(4):
            edits = []
            for path, (old, new) in pairs.items():
                kind = rng.random()
                wanted = new if kind < 0.35 else edited(rng, new if kind < 0.7 else old)
                if rng.random() < 0.93:
                    edits += blocks(rng, path, old, wanted)
            if rng.random() < 0.1:
                edits.append(block(rng.choice(["new.py", "n 2.py ", "\u00e9\U0001f600.py", "\ud800.py"]), "", synthetic(rng, 4)))
            if rng.random() < 0.03 and max(map(len, context.values()), default=0) < 3000:
                edits.append(block(rng.choice(list(context)), "", rng.choice(["x", "\n", "é\u2028"])))
            case = {"code_context": context, "oracle_new_content": oracle, "completion": completion(rng, edits)}
            # CPython is quadratic in the length of the patches, which the answer's length follows.
            if len(case["completion"]) <= min(limit, rng.choice([600, 1000, 1000, 1500, 8000 if rng.random() < 0.05 else 1500])):
                yield case


def diff_mess(rng, text):
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        kind = rng.randrange(10)
        if kind == 0:
            del lines[at]
            lines = lines or [""]
        elif kind == 1:
            lines.insert(at, rng.choice(["", "\r", "\\ No newline at end of file", "+x", "-x", " x", "text", "@@ -1 +1 @@", "@@ -0,0 +0,0 @@ f"]))
        elif kind == 2:
            names = ["--- a/x y", "+++ b/x y", "--- /dev/null", "+++ /dev/null", "--- a/x\t2020", "+++ b/x\t2020", "--- ", "+++ "]
            lines.insert(at, rng.choice(names))
        elif kind == 3:
            headers = ["diff --git a/x b/y", "diff --git x y", 'diff --git "a/x y" "b/x y"', "diff --git a/x b/x b/x", "diff --git svn://a b svn://c", "diff --git "]
            lines.insert(at, rng.choice(headers))
        elif kind == 4:
            lines.insert(at, rng.choice(["new file mode 100644", "deleted file mode 100644", "old mode 1", "index ab..cd 100644", "rename from x"]))
        elif kind == 5:
            lines.insert(at, rng.choice(["Binary files a/x and b/x differ", "Binary file x has changed", "GIT binary patch", "Binary files a\t1 and b differ"]))
        elif kind == 6:
            lines[at] += rng.choice(ODD + SEPARATORS)
        elif kind == 7:
            lines[at] = lines[at].replace(",", rng.choice([",0", ",1", ", "]), 1)
        elif kind == 8:
            lines[at] = lines[at][1:]
        else:
            lines[at] = lines[at].replace("a/", rng.choice(["", "c/", "b/", '"a/']), 1)
    return "\n".join(lines)


def diff(rng, pairs):
    import difflib

    out = ""
    for path, (old, new) in pairs.items():
        target = path if rng.random() < 0.85 else "moved/" + path
        if rng.random() < 0.7:
            out += f"diff --git a/{path} b/{target}\n" + rng.choice(["", "index 1a2b..3c4d 100644\n", "similarity index 90%\n"])
        lines = difflib.unified_diff(old.split("\n"), new.split("\n"), f"a/{path}", f"b/{target}", lineterm="", n=rng.choice([0, 1, 3]))
        out += "".join(line.replace("\n", "") + "\n" for line in lines)
        out += rng.choice(["", "", "\n", "\\ No newline at end of file\n"])
    return out[:-1] if out and rng.random() < 0.1 else out


def unidiff_cases(tasks, seed, limit=12_000):
    rng = random.Random(seed)
    for pairs in sources(tasks, rng):
        oracle = diff(rng, pairs)
        for _ in range(4):
            near = {p: (old, new if rng.random() < 0.4 else edited(rng, new)) for p, (old, new) in pairs.items()}
            predicted = diff(rng, near)
            gold_side = oracle if rng.random() < 0.85 else diff_mess(rng, oracle)
            if rng.random() < 0.5:
                predicted = diff_mess(rng, predicted)
            case = {"oracle_patches": [gold_side], "predicted_patches": [predicted] if rng.random() < 0.9 else [predicted, gold_side]}
            most = min(limit, rng.choice([600, 1000, 1500, 8000 if rng.random() < 0.03 else 1500]))
            if len(predicted) <= most and len(gold_side) <= most:
                yield case


def run(binary, kind, cases, extra=()):
    """The binary's results."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([binary, "reward", "--kind", kind, *extra], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
