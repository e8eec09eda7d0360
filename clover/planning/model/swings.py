"""How shares of rows swing around those of a plan, so that one meter tells its variants apart.

A meter that several variants share says  E = sum of f x expected  (`planning.model.metered`): as long as the shares
stand still, one equation for all factors f.  In a *move* some variants get more of the rows and others as much less;
it is made forwards for a block of time and backwards for as long.  So after each move, and after any number of them,
every variant has had its share of the plan, and with it accuracy and load are those of the plan.  What drifts slowly
over both blocks (idle power, the load) falls out of their difference.

Which variants move together is a weighing design.  With signs of the Walsh functions,  sign(r, c) = (-1)^(bits that r
and c have in common)  for move r = 1..N-1 and variant c, N the next power of two, all variants move in every block, and
any two of them as often in the same direction as in opposite ones, but for one move: as near to orthogonal as shares
can be whose sum is fixed.  The standard error of a factor is then that of a variant that is moved all the time by
itself; moving them one after the other would take as many times as long as there are variants.

Each variant moves by as much as it has room for.  If those that get more have less room than those that give, or the
other way round, the side with more moves by that much less.
"""

from __future__ import annotations

from collections.abc import Mapping

Move = dict[str, float]
"""By how much the share of each variant that moves is more in the first block and less in the second; sums to 0."""


def signs(count: int) -> list[list[int]]:
    """Return in which direction each of `count` variants moves, 1 or -1, in each move of a round; no move if there is
    one variant alone."""
    size = 1 << max(count - 1, 0).bit_length()
    return [[1 - 2 * ((move & variant).bit_count() & 1) for variant in range(count)] for move in range(1, size)]


def moves(room: Mapping[str, float]) -> list[Move]:
    """Return the moves of a round for variants of which the share may become so much more and so much less."""
    able = {variant: most for variant, most in sorted(room.items()) if most > 0.0}
    found = []
    for directions in signs(len(able)):
        ahead = {variant: most for (variant, most), sign in zip(able.items(), directions, strict=True) if sign > 0}
        back = {variant: most for variant, most in able.items() if variant not in ahead}
        rows = min(sum(ahead.values()), sum(back.values()))
        move = {variant: rows * most / sum(ahead.values()) for variant, most in ahead.items()}
        found.append(move | {variant: -rows * most / sum(back.values()) for variant, most in back.items()})
    return found


def moved(shares: Mapping[str, float], move: Mapping[str, float], sign: float) -> dict[str, float]:
    """Return `shares` after `move`, forwards (`sign` 1) or backwards (-1), in part or not at all (0)."""
    return {variant: share + sign * move.get(variant, 0.0) for variant, share in shares.items()}
