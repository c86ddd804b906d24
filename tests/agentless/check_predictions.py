"""Checks that SWE-bench's own harness reads the predictions that the program writes (swebench 5.0.2 read the file that is here).

    python tests/agentless/check_predictions.py        (needs: pip install swebench)

`all_preds.jsonl` holds the bytes that a unit test of src/agentless/files.rs compares with.
"""

import pathlib

from swebench.harness.utils import get_predictions_from_file

predictions = get_predictions_from_file(str(pathlib.Path(__file__).parent / "all_preds.jsonl"), "unused", "test")
assert [p["instance_id"] for p in predictions] == ["made__up-1", "made__up-2"], predictions
assert predictions[0]["model_patch"].endswith("-one\n+\u00fcne\n") and predictions[1]["model_patch"] == "", predictions
assert all(set(p) == {"model_name_or_path", "instance_id", "model_patch"} for p in predictions), predictions
print("read", len(predictions), "predictions")
