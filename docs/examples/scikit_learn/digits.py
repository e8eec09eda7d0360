import os
from pathlib import Path

import numpy as np

os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # a worker may make no semaphore, which joblib tries when it is imported

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC


def rows(part):
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[part]
    return (pixels[order] / 16).astype(np.float32), labels[order]


def load(variant, folder):  # fits when a worker starts, in under a second: there is no pickle to trust
    model = {"linear": LogisticRegression(), "kernel": SVC()}[variant.name]
    model.fit(*rows(slice(797)))
    return lambda inputs: [model.decision_function(inputs[0]).astype(np.float32)]


def evaluation(folder, split):  # rows that nothing was fitted to: one half to choose by, the other to report
    pixels, labels = rows(slice(797, 1297) if split == "calibration" else slice(1297, None))
    return [pixels], labels


if __name__ == "__main__":
    import clover

    (pixels,), labels = evaluation(None, "held_out")
    with clover.Server(str(Path(__file__).parent), http=False, carbon="static:400") as server:
        answer = server.infer({"pixels": pixels[0]})
        print(f"it is a {labels[0]}, and the answer is {answer.label}")
        print(answer.receipt)
