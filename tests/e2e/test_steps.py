"""A server whose workers make tensors of pictures, and answers of logits."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clover
from tests.support.pictures import empty_scans
from tests.support.servers import run, serve


def picture(level: int, form: str = "JPEG") -> bytes:
    """Return a picture of 40 x 30 pixels of one grey."""
    made = io.BytesIO()
    Image.new("RGB", (40, 30), (level, level, level)).save(made, form)
    return made.getvalue()


@pytest.mark.usefixtures("forked_zygotes")
def test_pictures_in_and_labels_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with serve("shades", tmp_path, variant="large", port=0) as server:
            answer = await server.ainfer({"picture": [[picture(250)], [picture(3, "PNG")]]})
            assert answer["labels"].tolist() == [[b"bright", b"dark"], [b"dark", b"bright"]]
            assert np.all(answer["probabilities"][:, 0] > 0.9)
            asked = [server.ainfer({"picture": [[data]]}) for data in (picture(250), b"no picture", picture(3)) * 4]
            found = await asyncio.gather(*asked, return_exceptions=True)
            for at, one in enumerate(found):
                if at % 3 == 1:
                    assert isinstance(one, clover.BadRequest)
                    assert str(one) == "the bytes are not a whole JPEG or PNG image"
                else:
                    assert not isinstance(one, BaseException)
                    assert one["labels"][0, 0] == (b"dark" if at % 3 else b"bright")
            costly = empty_scans(900, 900, 1500)
            asked = [server.ainfer({"picture": [[data]]}) for data in (picture(250), costly) * 6]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {str(one) for one in found[1::2]} == {"the JPEG has 1500 scans, more than the 32 allowed"}
            assert [one["labels"][0, 0] for one in found[::2]] == [b"bright"] * 6
            with pytest.raises(clover.BadRequest, match=r"^row 1: the bytes are not"):
                await server.ainfer({"picture": [[picture(250)], [b""]]})

    run(main())
