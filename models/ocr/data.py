"""Lines of text drawn here, so that what they say is known exactly; NumPy and pillow, with the font that it carries.

A line is one to five words, numbers and codes, in ASCII: the font has no more.  It is drawn dark on light (or the other
way round) at 14 to 36 pixels, turned by up to 2 degrees, blurred, given noise, and written as JPEG or PNG: what cameras
and scanners do to a line, in kind and not in detail.  One font and made-up text are not the world; the figures compare
variants, and do not say how well they read a receipt.  The two splits differ in their seed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = {"calibration": 250, "held_out": 500}
SEEDS = {"calibration": 1, "held_out": 2}
WORDS = """
amount account address annual balance bank before bill board book bridge build carbon card carrier case cash
centre change charge city client code company contract copy cost count country credit customer date delivery
deposit desk discount document due duty east energy entry error estate exit factory fee field file final floor
form freight general goods gross ground group half harbour head heat house import income index interest invoice
issue item job journal key label land ledger letter level licence line list loan local machine mail manager
market master member meter minute model month name network north note notice number office order outlet owner
packet page paid paper part payment period permit person plan plant point port post power price print product
profit project public quality quantity quarter rate receipt record refund region register rent report reserve
return review road room route safety sale sample seal season second section serial service share sheet shipment
signed site south square staff station status stock storage store street sub supply system table tax term test
ticket time title tool total track trade train transfer transit travel union unit update user value vendor
vessel visit voucher water weight west width window winter wire work world yard year zone
""".split()  # noqa: SIM905


def words(generator: np.random.RandomState) -> str:
    """Return the text of one line."""
    parts = []
    for _ in range(generator.randint(1, 6)):
        kind, number = generator.randint(8), generator.randint(1, 100_000)
        word = WORDS[generator.randint(len(WORDS))]
        parts.append(
            [
                word, word, word.capitalize(), word.capitalize(), word.upper(),
                f"{number / 100:,.2f}", f"{word[:2].upper()}-{number:05d}",
                f"{number % 28 + 1:02d}.{number % 12 + 1:02d}.{1990 + number % 40}",
            ][kind]
        )  # fmt: skip
    return " ".join(parts)


def picture(text: str, generator: np.random.RandomState) -> bytes:
    """Return a picture of `text`, as JPEG or PNG."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    font = ImageFont.load_default(int(generator.randint(14, 37)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(generator.randint(3, 9))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    paper, ink = int(generator.randint(190, 256)), int(generator.randint(0, 110))
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
    turn = generator.uniform(-2.0, 2.0) * min(1.0, 300 / size[0])  # the ends of a long line rise no more
    image = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.0, 1.4)))
    pixels = np.asarray(image, np.float32) + generator.uniform(0.0, 28.0) * generator.standard_normal(image.size[::-1])
    if generator.randint(4) == 0:
        pixels = 255.0 - pixels
    written = io.BytesIO()
    drawn = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if generator.randint(2):
        drawn.save(written, "JPEG", quality=int(generator.randint(30, 90)))
    else:
        drawn.save(written, "PNG", compress_level=1)
    return written.getvalue()


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[np.str_]]:
    """Return pictures of `split` ("calibration" or "held_out") in `[image]`, and what they say.

    Raises ModuleNotFoundError, with what to install, if pillow is missing.
    """
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        text = "the labelled lines of the family ocr are drawn by pillow"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name="PIL") from error
    # RandomState, unlike default_rng, is frozen: the same seed gives the same lines in every NumPy.
    generator = np.random.RandomState(SEEDS[split])
    texts = [words(generator) for _ in range(ROWS[split])]
    rows = np.empty((len(texts), 1), dtype=object)
    rows[:, 0] = [picture(text, generator) for text in texts]
    return [rows], np.array(texts)
