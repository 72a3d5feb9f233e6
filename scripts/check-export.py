"""Compares an exported graph, run by plain onnxruntime, with what our engines compute: check-export.py MODEL_DIR LOGITS.json

Both are made by `export_onnx --logits LOGITS.json MODEL_DIR`. The text goes in at once, token by token over a growing cache,
and as a batch of two sequences of different lengths. Needs `pip install numpy onnxruntime==1.31.1`.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

TOLERANCE = 1e-3


def main(folder, reference):
    reference = json.loads(pathlib.Path(reference).read_text())
    tokens, expected = np.array(reference["tokens"], np.int64), np.array(reference["logits"], np.float32)
    session = onnxruntime.InferenceSession(str(pathlib.Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    outputs = [o.name for o in session.get_outputs()]

    def run(ids, mask, past):
        feeds = {"input_ids": ids, "attention_mask": mask, **past}
        logits, *present = session.run(outputs, feeds)
        return logits, {cache.name: value for cache, value in zip(caches, present)}

    def empty(batch):
        return {c.name: np.zeros((batch, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}

    def close(what, found, wanted):
        difference = np.abs(found - wanted).max()
        print(f"{what}: largest difference {difference:.2e}")
        if not difference <= TOLERANCE:
            sys.exit(f"{what}: the logits differ by {difference}, more than {TOLERANCE}")

    n = len(tokens)
    logits, _ = run(tokens[None], np.ones((1, n), np.int64), empty(1))
    close(f"{n} tokens at once", logits[0], expected)

    past, rows = empty(1), []
    for i in range(n):
        logits, past = run(tokens[None, i : i + 1], np.ones((1, i + 1), np.int64), past)
        rows.append(logits[0, 0])
    close(f"{n} tokens one by one", np.stack(rows), expected)

    short = n // 3
    ids, mask = np.stack([tokens, tokens]), np.ones((2, n), np.int64)
    ids[1, short:], mask[1, short:] = 0, 0
    logits, _ = run(ids, mask, empty(2))
    close(f"a batch of {n} and {short} tokens, the first", logits[0], expected)
    close(f"a batch of {n} and {short} tokens, the second", logits[1, :short], expected[:short])


if __name__ == "__main__":
    main(*sys.argv[1:])
