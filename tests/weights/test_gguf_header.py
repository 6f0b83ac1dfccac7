"""The header of a GGUF file: what gguf-py's own reader finds, of whole files; an error in one line, of all others."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from gguf_files import field, header, text
from hypothesis import given, settings
from hypothesis import strategies as st
from real_models import GEMMA3, SMOLLM2, needs_models

from stratakv import UserError
from stratakv.assets import embedded_model
from stratakv.weights.gguf_split import read_gguf_header

_STRING, _ARRAY, _U32, _F32 = 8, 9, 4, 6
ARCHITECTURE = field("general.architecture", _STRING, text("llama"))


def compare(path: Path) -> None:
    ours, theirs = read_gguf_header(path), GGUFReader(path)
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours.fields) == names
    for name in names:
        assert ours.get(name) == theirs.fields[name].contents(), name
        assert ours.fields[name].types[0] == theirs.fields[name].types[0]
    assert len(ours.tensors) == len(theirs.tensors)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.tensor_type) == (other.name, other.tensor_type)
        assert mine.shape == tuple(map(int, other.shape))
        assert (mine.n_elements, mine.n_bytes, mine.data_offset) == (
            other.n_elements,
            other.n_bytes,
            other.data_offset,
        )
        assert mine.data.dtype == other.data.dtype and mine.data.shape == other.data.shape
    for index in (0, -1):
        np.testing.assert_array_equal(ours.tensors[index].data, theirs.tensors[index].data)


def test_the_embedded_model_s_header_is_what_gguf_py_reads() -> None:
    compare(embedded_model())


@pytest.mark.real
@pytest.mark.slow
@needs_models
@pytest.mark.parametrize("path", [SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"])
def test_real_headers_are_what_gguf_py_reads(path: Path) -> None:
    compare(path)


def test_a_header_is_read_once_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(embedded_model().read_bytes())
    first = read_gguf_header(path)
    assert read_gguf_header(path) is first
    path.write_bytes(embedded_model().read_bytes() + b"\0")
    assert read_gguf_header(path) is not first


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    numbers = struct.pack("<IQ3f", _F32, 3, 1, 2, 0.5)
    texts = struct.pack("<IQ", _STRING, 2) + text("a") + text("ü")
    nested = struct.pack("<IQ", _ARRAY, 2) + struct.pack("<IQI", _U32, 1, 7) + struct.pack("<IQ2I", _U32, 2, 8, 9)
    fields = [field(name, _ARRAY, value) for name, value in (("n", numbers), ("t", texts), ("a", nested))]
    path.write_bytes(header(ARCHITECTURE, *fields, field("last", _U32, struct.pack("<I", 5))))
    found = read_gguf_header(path)
    assert found.get("n") == [1, 2, 0.5] and found.get("t") == ["a", "ü"] and found.get("a") == [[7], [8, 9]]
    assert found.length("t") == 2 and found.length("none") == 0 and found.get("last") == 5
    assert found.fields["t"].types == [GGUFValueType.ARRAY, GGUFValueType.STRING]


TENSOR = text("w") + struct.pack("<IQIQ", 1, 32, 0, 0)
FOREIGN = {
    "another format": (b"PK\x03\x04" + bytes(100), "is not a GGUF file: it begins with b'PK"),
    "nothing": (b"", "is not a GGUF file"),
    "the magic alone": (b"GGUF", "is truncated: a GGUF header has 24 bytes"),
    "version 1": (header(version=1), "GGUF version 1, versions 2 and 3 can be read: convert the model again"),
    "version 9": (header(version=9), "GGUF version 9.*newer"),
    "big-endian": (header(order=">"), "of a big-endian machine: `gguf-convert-endian"),
    "counts of exabytes": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "don't fit in 24 bytes"),
    "a huge array": (header(field("a", _ARRAY, struct.pack("<IQ", _F32, 1 << 62))), "ends .* bytes behind the file"),
    "a huge array of texts": (header(field("a", _ARRAY, struct.pack("<IQ", _STRING, 1 << 60))), "texts in a file of"),
    "a huge text": (header(field("a", _STRING, struct.pack("<Q", 1 << 63))), "a text of .* ends behind the file"),
    "a wild text in an array": (
        header(field("a", _ARRAY, struct.pack("<IQQ", _STRING, 1, 1 << 62))),
        "ends .* bytes behind the file",
    ),
    "an unknown value": (header(field("a", 77, bytes(8))), "unknown type 77"),
    "an unknown array": (header(field("a", _ARRAY, struct.pack("<IQ", 77, 1) + bytes(8))), "unknown type 77"),
    "no UTF-8": (header(field("a", _STRING, text(b"\xff\xfe"))), "truncated or damaged: .*utf-8"),
    "a field twice": (header(ARCHITECTURE, ARCHITECTURE), "general.architecture is there twice"),
    "a tensor twice": (header(ARCHITECTURE, tensors=(TENSOR, TENSOR)) + bytes(400), "the tensor w is there twice"),
    "odd alignment": (header(field("general.alignment", _U32, struct.pack("<I", 33))), "33 is no power of two"),
    "a wild shape": (
        header(tensors=(text("w") + struct.pack("<IQIQ", 1, 1 << 50, 0, 0),)),
        "is truncated: its tensors need",
    ),
    "too many dimensions": (header(tensors=(text("w") + struct.pack("<I", 1 << 30) + bytes(40),)), "dimensions"),
    "an unknown type of tensor": (
        header(tensors=(text("w") + struct.pack("<IQIQ", 1, 32, 999, 0),)),
        "w is of ggml type 999, which gguf-py doesn't know",
    ),
    "rows of half a block": (
        header(tensors=(text("w") + struct.pack("<IQIQ", 1, 33, 8, 0),)) + bytes(200),
        "rows of 33 values, Q8_0 has blocks of 32",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_whole_header_is_said_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = FOREIGN[case]
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"odd\.gguf.*{message}") as caught:
        read_gguf_header(path)
    assert "\n" not in str(caught.value)


WHOLE = embedded_model().read_bytes()[:200_000]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_header_with_wrong_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 3000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with pytest.raises(UserError, match="m.gguf"):  # the tensors are cut off in any case
        read_gguf_header(path)
