"""Forms of uploads, however their bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clover.http.multipart import FormReader

CONTENT = st.lists(
    st.sampled_from([b"\r\n", b"--", b"--X", b"\r\n--", b"\r\n--Y", b"\r", b"\n", b"a", b"\x00\xff"])
).map(b"".join)


@given(CONTENT.filter(lambda data: b"\r\n--X" not in b"\r\n" + data), st.lists(st.integers(1, 40)), st.booleans())
def test_a_file_is_what_was_sent(data: bytes, cuts: list[int], before: bool) -> None:
    purpose = b'--X\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    named = b'Content-Disposition: form-data; filename="a;\\"b.jsonl"; name=file'
    file = b"--X\r\nContent-Type: text/plain\r\n%b\r\n\r\n%b\r\n" % (named, data)
    body = (purpose + file if before else file + purpose) + b"--X--\r\nand what follows"
    taken: list[bytes] = []
    reader = FormReader(taken.append)
    at = 0
    for size in [*cuts, len(body)]:
        reader.feed(body[at : at + size])
        at += size
    assert reader.complete
    assert b"".join(taken) == data
    assert reader.fields == {"purpose": "batch"}
    assert reader.filename == 'a;\\"b.jsonl'
