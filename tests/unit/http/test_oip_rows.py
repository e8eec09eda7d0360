"""What a body says of its rows is bounded before anything is made of it, and every way to read a body says the same."""

from __future__ import annotations

import gzip
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fuzz_decoder import Fuzzer, outcome
from bench.oip_cases import Cases
from clover.errors import RequestError, TooLarge
from clover.http.oip.inputs import quote_input
from clover.http.oip.request import decode, decode_ahead
from clover.http.oip.signature import Signature
from clover.http.oip.tensors import DATATYPES
from clover.runtime.memory.bytes_codec import pack_element
from clover.types import FamilySpec
from tests.support.http_fakes import Driver, FakeModel, FakeView, family, request, tensor
from tests.support.router_fixture import House

INFER = "/v2/models/m/infer"
ROWS = 16
MANY = (10**7, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
BINARY = (False, True)


def spec(datatype: str = "FP32", *shape: int, **others: Any) -> FamilySpec:
    row = shape or (-1, 2)
    bound = tuple(axis if axis > 0 else 3 for axis in row)
    one = tensor("x", datatype, *row, max_shape=bound if min(row) < 0 else (), max_bytes=64)
    return family("m", [one], [tensor("y", "FP32", 1)], **others)


def body(shape: list[Any], datatype: str = "FP32", data: Any = None, *, binary: bool = False) -> tuple[bytes, int]:
    """A request of a tensor `x`, of no data by default; and the length of its JSON, or -1."""
    item: dict[str, Any] = {"name": "x", "shape": shape, "datatype": datatype}
    item |= {"parameters": {"binary_data_size": 0}} if binary else {"data": [] if data is None else data}
    text = orjson.dumps({"inputs": [item]})
    return text, len(text) if binary else -1


def refusal(signature: Signature, text: bytes, json_length: int = -1) -> str:
    with pytest.raises(RequestError) as refused:
        decode(signature, text, json_length)
    return refused.value.message


# --- rows of nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", BINARY)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_rows_of_nothing_are_refused_before_anything_is_made_of_them(datatype: str, binary: bool) -> None:
    for declared, row in ((spec(datatype), [0, 2]), (spec(datatype), [3, 2]), (spec(datatype, 2), [2])):
        signature = Signature(declared, ROWS)
        for rows in MANY:
            text, json_length = body([rows, *row], datatype, binary=binary)
            tracemalloc.start()
            message = refusal(signature, text, json_length)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert message.startswith("input 'x': ")
            assert f"a request carries at most {ROWS}" in message
            assert str(rows) in message
            assert peak < 32_000


@pytest.mark.parametrize("binary", BINARY)
@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "BOOL"])
def test_rows_of_nothing_are_refused_however_they_come(datatype: str, binary: bool) -> None:
    model = FakeModel(spec(datatype))
    model.roomy = True
    text, json_length = body([1 << 31, 0, 2], datatype, binary=binary)
    fields = [f"Inference-Header-Content-Length: {json_length}"] if binary else []
    d = Driver(FakeView(model))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:20], text[20:])) + b"0\r\n\r\n"
    packed = request("POST", INFER, gzip.compress(text), [*fields, "Content-Encoding: gzip"])
    chunked = request("POST", INFER, fields=[*fields, "Transfer-Encoding: chunked"]) + chunks
    for whole in (request("POST", INFER, text, fields), packed, chunked):
        (answer,) = d.send(whole)
        assert answer.status == 400
        assert "2147483648 rows" in answer.json()["error"]
    assert not model.tickets


def test_rows_of_nothing_are_not_received_ahead() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    for rows in MANY:
        text, _ = body([rows, 2], binary=True)
        assert decode_ahead(signature, text, 8) is None


def test_there_are_no_more_rows_than_bytes() -> None:
    """Rows without elements are legal, and a client cannot fill the queue with a hundred bytes of them."""
    for datatype in ("FP32", "BYTES", "BOOL"):
        signature = Signature(spec(datatype), 1 << 16)
        for binary in BINARY:
            for rows in (1, 3):
                taken = decode(signature, *body([rows, 0, 2], datatype, binary=binary))
                assert taken.rows == len(taken.inputs[0][1]) == rows
            text, json_length = body([1000, 0, 2], datatype, binary=binary)
            assert f"1000 rows in a body of {len(text)} bytes" in refusal(signature, text, json_length)
    assert decode(Signature(spec("BYTES"), ROWS), *body([3, 0, 2], "BYTES", [[], [], []])).inputs[0][1] == [b""] * 3


def test_a_request_carries_as_many_rows_as_the_family_takes() -> None:
    signature = Signature(spec("UINT8", 2), ROWS)
    assert decode(signature, *body([ROWS, 2], "UINT8", [7] * (2 * ROWS))).rows == ROWS
    with pytest.raises(TooLarge, match=rf"input 'x': it has 200 rows; a request carries at most {ROWS} rows"):
        decode(signature, *body([200, 2], "UINT8", [7] * 400))
    d = Driver(FakeView(FakeModel(spec("UINT8", 2), most_rows=ROWS)))
    assert d.post(INFER, body([200, 2], "UINT8", [7] * 400)[0]).status == 413


def test_the_family_takes_what_may_wait_at_once() -> None:
    for slots, queue_rows, most in ((64, 0, 64), (64, 4, 4), (8, 100, 8)):
        house = House(slots=slots, queue_rows=queue_rows)
        house.route(0)
        assert house.router.most_rows == most
        house.router.close(house.router.open(most))
        with pytest.raises(TooLarge, match=f"at most {most} rows"):
            house.router.open(most + 1)


def test_the_compiled_parser_takes_no_more_rows_or_depth_than_the_plain_decoder() -> None:
    text, _ = body([4, 2], data=[1.0] * 8)
    for most_rows, json_depth in ((3, 100), (4, 100), (4, 4), (4, 3), (4, 1)):
        signature, plain = (Signature(spec("FP32", 2, max_batch=8), most_rows, json_depth) for _ in range(2))
        plain.plain = None
        assert outcome(signature, text, -1) == outcome(plain, text, -1)
        nested = body([4, 2], data=[[1.0] * 2] * 4)[0]
        assert outcome(signature, nested, -1) == outcome(plain, nested, -1)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["2.0", "2e0", "20e-1", "true", "-2", "null", '"2"', "[2]", "{}", "2.5", "1e400"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("declared", [(2, 2), (-1, 2)])
def test_axes_are_whole_numbers_written_as_such(declared: tuple[int, ...], at: int, axis: str) -> None:
    shape = ["2", "2", "2"]
    shape[at] = axis
    text = body([2, 2, 2], data=[1.0] * 8)[0].replace(b"[2,2,2]", f"[{','.join(shape)}]".encode())
    signature = Signature(spec("FP32", *declared), ROWS)
    message = refusal(signature, text)
    if axis == "1e400":
        assert message == "the body is not valid JSON"
    else:
        assert message.startswith("input 'x': its shape holds ")
    plain = Signature(spec("FP32", *declared), ROWS)
    plain.plain = None
    assert refusal(plain, text) == message


def test_sizes_are_whole_numbers_written_as_such() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    for size in (8.0, True, -1, "8", None, [8], 2**64):
        item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
        text = orjson.dumps({"inputs": [item]}) if size != 2**64 else b""
        if text:
            assert refusal(signature, text + bytes(8), len(text)).startswith("input 'x': binary_data_size is ")


def test_a_scalar_row_has_an_axis_of_rows_all_the_same() -> None:
    signature = Signature(family("m", [tensor("x", "FP32")], [tensor("y", "FP32", 1)]), ROWS)
    assert decode(signature, *body([2], data=[1, 2])).rows == 2
    assert "its shape is []" in refusal(signature, body([], data=[1])[0])


# --- what errors say --------------------------------------------------------------------------------------------------


def test_errors_name_the_tensor_what_came_and_what_is_taken() -> None:
    one = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    signature = Signature(family("m", [tensor("x", "FP32", 2), tensor("n", "INT8", 1)], [tensor("y", "FP32", 1)]), ROWS)

    def said(*inputs: Any) -> str:
        return refusal(signature, orjson.dumps({"inputs": inputs}))

    assert said(one | {"name": "z"}) == "an input is named 'z'; the model takes 'x', 'n'"
    assert said(one | {"name": ["x"]}) == "an input is named an array; the model takes 'x', 'n'"
    assert said("x") == "inputs holds 'x'; an input is an object"
    assert said(one, one) == "input 'x' is given twice"
    assert said(one) == "the request lacks 'n' of the inputs that the model takes"
    assert said(one, one, one) == "the request has 3 inputs, and the model takes 2"
    assert said(one | {"datatype": "FP64"}) == "input 'x': its datatype is 'FP64'; the model takes FP32"
    shape = "input 'x': its shape is [1, 3]; the model takes [-1, 2] (the first axis is the batch)"
    assert said(one | {"shape": [1, 3]}) == shape
    assert said(one | {"shape": [0, 2]}) == "input 'x': it has no rows; a request carries at least one"
    assert said(one | {"data": [1]}) == "input 'x': its data has 1 elements, and the shape [1, 2] takes 2"
    assert said(one | {"data": [[1, 2, 3]]}) == "input 'x': its nested data does not have the shape [1, 2]"
    assert said(one | {"data": [1, "a"]}) == "input 'x': an element is not a number that FP32 holds"
    short = one | {"parameters": {"binary_data_size": 8}}
    del short["data"]
    assert said(short) == "input 'x': binary_data_size is 8, and the body has 0 bytes left for it"
    other = {"name": "n", "shape": [2, 1], "datatype": "INT8", "data": [1, 300]}
    assert said(one, other) == "input 'n': it has 2 rows, and the inputs before it have 1"
    ranged = "input 'n': an element is outside the range of INT8"
    assert said(one, other | {"shape": [1, 1], "data": [300]}) == ranged
    outputs = [{"name": "q"}]
    text = orjson.dumps({"inputs": [one, other | {"shape": [1, 1], "data": [3]}], "outputs": outputs})
    assert refusal(signature, text) == "an output is named 'q'; the model has 'y'"


@given(st.text(max_size=200))
def test_what_a_client_sent_is_repeated_in_part_and_quoted(text: str) -> None:
    said = quote_input(text)
    assert said.isprintable()
    assert len(said) < 450
    assert said[0] in "'\""
    if len(text) <= 40:
        assert said == repr(text)


def test_numbers_that_are_no_json_are_refused() -> None:
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400"):
        for datatype in ("FP32", "FP64"):
            text = body([1, 2], datatype, [1.5, 2])[0].replace(b"1.5", number)
            said = refusal(Signature(spec(datatype, 2), ROWS), text)
            assert said.startswith("the body is not valid JSON")
            assert ("no NaN and no Infinity; a tensor that holds one is sent as binary" in said) == (number != b"1e400")


# --- every way to read a body says the same ---------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_every_way_to_read_a_body_says_the_same(seed: int) -> None:
    """`python -m bench.fuzz_decoder` goes on with this for as long as it is told."""
    fuzzer, cases = FUZZER, Cases(seed)
    for _ in range(50):
        fuzzer.examine(cases.case())


FUZZER = Fuzzer(limit_ms=np.inf)  # time on shared cores measures the neighbours


# --- shapes of BYTES --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", BINARY)
def test_bytes_of_several_axes_keep_their_shape(binary: bool) -> None:
    """The number of elements does not tell [2, 3] from [3, 2]."""
    one = tensor("x", "BYTES", -1, -1, max_shape=(4, 4), max_bytes=200)
    declared = family("toy", [one], [tensor("y", "FP32", 2)], max_batch=4)
    fields, texts = [], [b"a", b"bc", b"", b"d", b"e", b"f"] * 2
    item: dict[str, Any] = {"name": "x", "shape": [2, 2, 3], "datatype": "BYTES"}
    data = b"".join(map(pack_element, texts))
    if binary:
        item["parameters"] = {"binary_data_size": len(data)}
        text = orjson.dumps({"inputs": [item]})
        fields = [f"Inference-Header-Content-Length: {len(text)}"]
        text += data
    else:
        text = orjson.dumps({"inputs": [item | {"data": [element.decode() for element in texts]}]})
    house = House(declared)
    house.route(0)
    d = Driver(FakeView(house.router))  # type: ignore[arg-type]
    assert d.send(request("POST", "/v2/models/toy/infer", text, fields)) == []
    slots = d.connection.exchanges[0].ticket.slots
    assert len(slots) == 2
    for row, slot in enumerate(slots):
        assert house.slab.dims("input", 0, slot) == (2, 3)
        assert house.slab.get_bytes("input", 0, slot) == b"".join(map(pack_element, texts[6 * row : 6 * row + 6]))


def test_axes_of_bytes_may_be_as_long_as_a_number_goes() -> None:
    one = tensor("x", "BYTES", -1, -1, max_shape=(-1, -1), max_bytes=64)
    signature = Signature(family("m", [one], [tensor("y", "FP32", 1)]), ROWS)
    for shape in ([1, 1 << 62, 2], [1, 1 << 62, 1 << 62], [3, (1 << 64) - 1, 1]):
        for binary in BINARY:
            assert refusal(signature, *body(shape, "BYTES", binary=binary)).startswith("input 'x': ")


@pytest.mark.parametrize("axis", [True, False, 1.0, None, "1", [1], {}])
def test_an_axis_of_one_is_written_as_one(axis: Any) -> None:
    for datatype in ("FP32", "BYTES", "INT8"):
        signature = Signature(spec(datatype, 1), ROWS)
        data = ["a"] if datatype == "BYTES" else [1]
        assert decode(signature, *body([1, 1], datatype, data)).rows == 1
        for shape in ([axis, 1], [1, axis]):
            for binary in BINARY:
                message = refusal(signature, *body(shape, datatype, data, binary=binary))
                assert message.startswith("input 'x': its shape holds ")


# --- JSON that came before --------------------------------------------------------------------------------------------


def known_request(identity: str, *, before: str = "", after: str = "") -> bytes:
    name = f'"id":{orjson.dumps(identity).decode()},' if identity else ""
    tensors = '"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]'
    return f"{{{before}{name}{tensors}{after}}}".encode()


def taken(signature: Signature, text: bytes, values: list[float]) -> tuple[str, list[float], bool]:
    """Return the id and the values that are read, and whether that was by the JSON that came before."""
    body = text + np.array(values, np.float32).tobytes()
    known = signature.known is not None and signature.known.decode(body, len(text)) is not None
    found = decode(signature, body, len(text))
    rows = found.inputs[0][1]
    assert isinstance(rows, np.ndarray)
    return found.id, rows.ravel().tolist(), known


def test_json_that_came_before_is_not_parsed_again() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    assert taken(signature, known_request("a"), [1.0, 2.0]) == ("a", [1.0, 2.0], False)
    assert taken(signature, known_request("a"), [3.0, 4.0]) == ("a", [3.0, 4.0], True)
    assert taken(signature, known_request("another, longer one"), [5.0, 6.0]) == (
        "another, longer one",
        [5.0, 6.0],
        True,
    )
    assert taken(signature, known_request('with "quotes"'), [7.0, 8.0]) == ('with "quotes"', [7.0, 8.0], False)
    assert taken(signature, known_request(""), [9.0, 9.5]) == ("", [9.0, 9.5], False), "it has no id at all"


def test_a_request_without_an_id_is_known_as_a_whole() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    taken(signature, known_request(""), [1.0, 2.0])
    assert taken(signature, known_request(""), [3.0, 4.0]) == ("", [3.0, 4.0], True)
    assert not taken(signature, known_request("a"), [3.0, 4.0])[2]


@pytest.mark.parametrize(
    "before",
    [
        '"parameters":{"other":"a"},',  # the same string stands elsewhere first
        '"a":"b","id":"b",',  # a member given twice: the last counts
        '":":1,',
    ],
)
def test_an_id_is_only_what_another_id_could_stand_for(before: str) -> None:
    for identity in ("a", ":"):
        signature = Signature(spec("FP32", 2), ROWS)
        taken(signature, known_request(identity, before=before), [1.0, 2.0])
        for other in ("b", identity, "c"):
            assert taken(signature, known_request(other, before=before), [3.0, 4.0])[:2] == (other, [3.0, 4.0])


def test_parameters_of_a_known_request_are_its_own_again() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    parameters = {"timeout": 5, "clover_min_accuracy": 90, "clover_receipt": True, "binary_data_output": True}
    after = f',"parameters":{orjson.dumps({**parameters, "clover_cascade": "off"}).decode()}'
    text = known_request("a", after=after)
    first = decode(signature, text + b"\0" * 8, len(text))
    first.timeout_ns = 1  # as the endpoint sets it for a tenant
    first.min_accuracy = 1.0
    again = decode(signature, text + b"\0" * 8, len(text))
    assert (again.timeout_ns, again.min_accuracy, again.wants_receipt, again.cascade) == (5000, 90.0, True, False)
    assert again.outputs is signature.defaults[True]


def test_shapes_of_a_known_request_are_its_own_again() -> None:
    signature = Signature(spec("BYTES", -1, -1), ROWS)
    elements = b"".join(pack_element(b"e") for _ in range(6))
    for shape in ([1, 2, 3], [1, 3, 2]):
        signature.known = None
        signature = Signature(spec("BYTES", -1, -1), ROWS)
        item = {"name": "x", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(elements)}}
        text = orjson.dumps({"inputs": [item]})
        first = decode(signature, text + elements, len(text))
        assert signature.known is not None
        again = decode(signature, text + elements, len(text))
        assert first.shapes == again.shapes == {0: tuple(shape[1:])}


def test_a_known_request_has_no_more_rows_than_bytes_either() -> None:
    """Its id was longer before, and so was its body."""
    signature = Signature(spec("FP32", 0), 1000)
    item = {"name": "x", "shape": [900, 0], "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    long, short = (orjson.dumps({"id": name, "inputs": [item]}) for name in ("i" * 850, "i"))
    assert decode(signature, long, len(long)).rows == 900
    assert signature.known is not None
    assert "no more than its body has bytes" in refusal(signature, short, len(short))


def test_clients_in_turn_are_known_one_at_a_time_and_long_json_never() -> None:
    signature = Signature(spec("FP32", 2), ROWS)
    for number in range(33):
        text = known_request("a", after=f',"parameters":{{"timeout":{number}}}')
        before = signature.known
        assert decode(signature, text + b"\0" * 8, len(text)).timeout_ns == number * 1000
        assert (signature.known is not before) == (number % 16 == 0)
    text = known_request("a", after=f',"parameters":{{"note":"{"n" * 2000}"}}')
    for _ in range(40):
        assert not taken(signature, text, [1.0, 2.0])[2]
