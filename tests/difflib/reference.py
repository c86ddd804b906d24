"""SWE-RL's rewards in plain Python, from their description: the reference that the binary is compared with.

CPython 3.11's own `difflib`, `str.splitlines`, `str.strip` and `re`; the package `unidiff` for diffs. Written for clearness: no speed, no
shortcuts. The mean is summed in ascending order of the paths (the order of a set, as upstream has it, would differ from run to run).
"""

import difflib
import re

BLOCK = re.compile(
    r"```.*?\n### (.*)\n<<<<<<< SEARCH\n([\s\S]*?)\n=======\n([\s\S]*?)\n>>>>>>> REPLACE\n```"
)


class FormatError(Exception):
    pass


def read_answer(output):
    for tag in ("<think>", "</think>", "<solution>", "</solution>"):
        if output.count(tag) != 1:
            raise FormatError(tag)
    thought = output.split("<think>", 1)[1].split("</think>", 1)[0].strip()
    answer = output.split("<solution>", 1)[1].split("</solution>", 1)[0].strip()
    if not thought:
        raise FormatError("empty thought")
    return thought, answer


def edits_by_path(answer):
    edits = {}
    for path, search, replace in BLOCK.findall(answer):
        edits.setdefault(path, []).append((search, replace))
    if not edits:
        raise FormatError("no block")
    return edits


def apply(context, edits):
    new = {}
    for path, changes in edits.items():
        text = "\n" + context.get(path, "")
        for search, replace in changes:
            if search == replace:
                raise FormatError("equal")
            if "\n" + search not in text:
                raise FormatError("not found")
            text = text.replace("\n" + search, "\n" + replace)
        new[path] = text[1:]
    return new


def patches(context, new):
    out = {}
    for path, text in new.items():
        lines = difflib.unified_diff(context.get(path, "").splitlines(), text.splitlines(), lineterm="", n=3)
        patch = "\n".join(list(lines)[2:])
        if patch:
            out[path] = patch
    return out


def compare(predicted, oracle):
    """The reward, and the similarity of each path."""
    paths = sorted(set(predicted) | set(oracle))
    similarities = {}
    for path in paths:
        a, b = predicted.get(path, ""), oracle.get(path, "")
        similarities[path] = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() if a and b else 0.0
    reward = sum(similarities.values()) / len(paths) if paths else 1.0
    return reward, similarities


def similarity(case, discrete=False):
    context = case["code_context"]
    oracle = patches(context, case["oracle_new_content"])
    try:
        _, answer = read_answer(case["completion"])
        predicted = patches(context, apply(context, edits_by_path(answer)))
    except FormatError:
        return -1.0, {}
    if discrete:
        return float(predicted == oracle), {}
    return compare(predicted, oracle)


def diff_changes(texts):
    from unidiff import PatchSet

    out = {}
    for text in texts:
        try:
            files = PatchSet(text)
        except Exception:
            continue
        for file in files:
            if file.is_binary_file:
                continue
            path, header = file.path, ""
            if file.is_rename:
                path = file.source_file.removeprefix("a/")
                header = f"rename from {path} to {file.target_file.removeprefix('b/')}"
            body = "\n".join(str(hunk).strip() for hunk in file)
            out[path] = f"{header}\n{body}".strip()
    return out


def unidiff(case):
    return compare(diff_changes(case["predicted_patches"]), diff_changes(case["oracle_patches"]))
