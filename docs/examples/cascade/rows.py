import numpy as np


def shots(count, seed):  # of a ball: speed in m/s, elevation in degrees
    return np.random.default_rng(seed).uniform((10, 5), (40, 80), (count, 2)).astype(np.float32)


def fly(rows):  # how many metres it flies, step by step: there is drag, and a wall 30 m away
    (speed, degrees), step_s = rows.T.astype(float), 0.08
    x, y = np.zeros((2, len(rows)))
    right, up = speed * np.cos(np.radians(degrees)), speed * np.sin(np.radians(degrees))
    flies = np.ones(len(rows), bool)
    for _ in range(100):
        drag = 0.01 * np.hypot(right, up)
        right, up = right - drag * right * step_s, up - (9.81 + drag * up) * step_s
        x, y = x + flies * right * step_s, y + flies * up * step_s
        flies &= (y > 0) & ((abs(x - 30) > 2) | (y > 4))
    return x


def load(folder, split):
    rows = shots(500, 1 if split == "calibration" else 2)
    return [rows], fly(rows)
