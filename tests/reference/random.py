"""Twin of `clover._native.random`: the same integers, and by the same arithmetic the same floats."""

from __future__ import annotations

import math

WORD = 2**64 - 1

# Wichura, AS 241: numerator and denominator, highest power first.
MIDDLE = (
    (
        2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
        13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608,
    ),
    (
        5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
        5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0,
    ),
)
FLANK = (
    (
        7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
        3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
        0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0,
    ),
)
TAIL = (
    (
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
        0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772,
    ),
    (
        2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
        0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0,
    ),
)


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def rotate(word: int, by: int) -> int:
    return (word << by | word >> 64 - by) & WORD


def polynomial(highest_first: tuple[float, ...], x: float) -> float:
    value = highest_first[0]
    for coefficient in highest_first[1:]:
        value = value * x + coefficient
    return value


def normal_quantile(p: float) -> float:
    if not 0.0 < p < 1.0:
        raise ValueError("p")
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return polynomial(MIDDLE[0], r) * q / polynomial(MIDDLE[1], r)
    r = math.sqrt(-math.log(p if q < 0 else 1.0 - p))
    above, below = FLANK if r <= 5.0 else TAIL
    r -= 1.6 if r <= 5.0 else 5.0
    value = polynomial(above, r) / polynomial(below, r)
    return -value if q < 0 else value


class Random:
    def __init__(self, seed: int, stream: int = 0) -> None:
        if not (0 <= seed <= WORD and 0 <= stream <= WORD):
            raise OverflowError("seed or stream")
        at = seed ^ mix(stream)
        self.state = [mix(at + (i + 1) * 0x9E3779B97F4A7C15 & WORD) for i in range(4)]

    def bits(self) -> int:
        s0, s1, s2, s3 = self.state
        answer = (rotate((s0 + s3) & WORD, 23) + s0) & WORD
        s2 ^= s0
        s3 ^= s1
        self.state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17 & WORD), rotate(s3, 45)]
        return answer

    def below(self, bound: int) -> int:
        if bound == 0:
            raise ValueError("bound")
        return self.bits() * bound >> 64

    def uniform(self) -> float:
        return ((self.bits() >> 11) + 1) * 2.0**-53

    def exponential(self) -> float:
        return -math.log(self.uniform())

    def normal(self) -> float:
        return normal_quantile(((self.bits() >> 12) + 0.5) * 2.0**-52)
