"""Checks that SWE-bench's own harness reads predictions (swebench 5.0.2 read the file that is here).

    python tests/agentless/check_predictions.py [PREDICTIONS]        (needs: pip install swebench)

Without an argument: `all_preds.jsonl`, which holds the bytes that a unit test of src/agentless/files.rs compares with. With one: a file that
the program has written, from which `run-tests` takes what the harness takes.
"""

import pathlib
import sys

from swebench.harness.utils import get_predictions_from_file

given = sys.argv[1:]
path = given[0] if given else str(pathlib.Path(__file__).parent / "all_preds.jsonl")
predictions = get_predictions_from_file(path, "unused", "test")
if not given:
    assert [p["instance_id"] for p in predictions] == ["made__up-1", "made__up-2"], predictions
    assert predictions[0]["model_patch"].endswith("-one\n+\u00fcne\n") and predictions[1]["model_patch"] == "", predictions
wanted = {"model_name_or_path", "instance_id", "model_patch"}
assert predictions and all(set(p) == wanted and all(isinstance(v, str) for v in p.values()) for p in predictions), predictions
assert len({p["instance_id"] for p in predictions}) == len(predictions), "an instance has two predictions"
print("read", len(predictions), "predictions")
