"""Data objects: what is encoded is what any safetensors reader sees, and nothing damaged is read."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from extraction.core.errors import DamagedData
from extraction.format.safetensors import allocate, decode


def filled_shard():
    layout = {"tokens": ((3,), np.int32), "x": ((3, 4), ml_dtypes.bfloat16), "none": ((0, 4), np.float32)}
    shard = allocate(layout, {"format": "3", "record_ids": '["ä"]'})
    shard.arrays["tokens"][:] = [5, 6, 7]
    shard.arrays["x"][:] = np.arange(12).reshape(3, 4)
    return shard


def test_the_safetensors_library_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(filled_shard().data)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "3", "record_ids": '["ä"]'}
        assert file.get_tensor("x").astype(np.float32).tolist() == np.arange(12.0).reshape(3, 4).tolist()
        assert file.get_tensor("tokens").tolist() == [5, 6, 7]


def test_decode_gives_back_what_was_filled_in():
    ours = filled_shard()
    theirs = decode(bytes(ours.data))
    assert theirs.metadata == ours.metadata
    assert {name: a.tolist() for name, a in theirs.arrays.items()} == {
        name: a.tolist() for name, a in ours.arrays.items()
    }


def test_the_same_content_is_the_same_bytes():
    assert bytes(filled_shard().data) == bytes(filled_shard().data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(DamagedData):
        decode(data, "object")


@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_changed_object_is_read_or_refused_but_never_crashes(at, byte, cut):
    data = bytearray(filled_shard().data)
    data[min(at, len(data) - 1)] = byte
    try:
        shard = decode(bytes(data[: at if cut else None]), "object")
    except DamagedData as error:
        assert "object" in str(error)
    else:
        assert sum(array.nbytes for array in shard.arrays.values()) < len(data)


@pytest.mark.parametrize("shape, size", [([1] * 100, 4), ([2**40, 2**40, 0], 0), ([2**63, 0], 0), ([0, 2**62], 0)])
def test_a_shape_that_no_array_can_have_is_damage(shape, size):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    with pytest.raises(DamagedData, match="wrong size of 'x'|bad shape or offsets of 'x'"):
        decode(len(header).to_bytes(8, "little") + header + bytes(size), "object")
