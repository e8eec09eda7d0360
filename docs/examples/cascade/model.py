import numpy as np

from .rows import fly, shots


def committee(variant, folder):  # five members: 400 random features each, and weights by ridge regression
    random, known = np.random.default_rng(0), shots(5000, 0)
    mix, shift = random.standard_normal((5, 2, 400), np.float32), random.standard_normal((5, 1, 400), np.float32)

    def features(rows):
        return np.maximum((rows - np.float32((25, 42))) / np.float32((15, 38)) @ mix + shift, 0)

    known_features = features(known).astype(float)
    across = known_features.swapaxes(1, 2)
    weights = np.linalg.solve(across @ known_features + 0.01 * np.eye(400), across @ fly(known)[:, None])

    def answer(inputs):
        votes = features(inputs[0]) @ weights  # [members, rows, 1]
        return [votes.mean(axis=0).astype(np.float32), votes.std(axis=0).astype(np.float32)]

    return answer


def simulation(variant, folder):
    def answer(inputs):  # one row at a time, as most simulations run
        metres = np.stack([fly(row[None]) for row in inputs[0]]).astype(np.float32)
        return [metres, np.zeros_like(metres)]

    return answer
