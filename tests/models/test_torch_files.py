"""PyTorch's files are read without PyTorch: both formats, any strides, and nothing in them is executed."""

import pathlib
import struct
import zipfile

import numpy as np
import pytest
import torch_writer as w
from hypothesis import given, settings
from hypothesis import strategies as st

from kmed.errors import WeightsError
from kmed.models.torch_files import read_torch_file

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype("float32"),
    "bn.num_batches_tracked": np.array(7),
    "fc.weight": RNG.normal(size=(5, 4)).astype("float64"),
    "fc.bias": RNG.normal(size=5).astype("float16"),
}


def write(tmp_path, data: bytes, name="weights.pth"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def one(reference=None, shape=(2, 3), strides=(3, 1), offset=0) -> bytes:
    """Returns a dictionary with a single tensor."""
    return w.dictionary({"a": w.tensor(reference or w.storage("0", 6), shape, strides, offset)})


SIX = {"0": np.arange(6, dtype="<f4").tobytes()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("compose", [w.old_file, w.zip_file])
def test_both_formats_with_any_strides(compose, transposed, tmp_path):
    old = compose is w.old_file
    arrays = {key: array for key, array in ARRAYS.items() if not old or array.dtype == np.float32}
    value = w.state_dict(arrays, old=old, transposed=transposed)
    read = read_torch_file(write(tmp_path, compose(value, w.blocks(arrays, transposed=transposed))))
    assert list(read) == list(arrays)
    for key, array in arrays.items():
        assert read[key].dtype == array.dtype and read[key].flags.c_contiguous
        np.testing.assert_array_equal(read[key], array)


def test_reading_as_contiguous_would_be_found(tmp_path):
    """The planted mistake: the values in the order in which they are stored, without the strides."""
    arrays = {"conv.weight": ARRAYS["conv.weight"]}
    stored = w.blocks(arrays, transposed=True)
    read = read_torch_file(write(tmp_path, w.zip_file(w.state_dict(arrays, old=False, transposed=True), stored)))
    mistaken = np.frombuffer(stored["0"], "<f4").reshape(arrays["conv.weight"].shape)
    assert not np.allclose(mistaken, arrays["conv.weight"])
    np.testing.assert_array_equal(read["conv.weight"], arrays["conv.weight"])


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], "float32")
    stored = {"0": (values.view("uint32") >> 16).astype("<u2").tobytes()}
    value = w.dictionary({"a": w.tensor(w.storage("0", 3, "BFloat16Storage"), (3,), (1,))})
    read = read_torch_file(write(tmp_path, w.zip_file(value, stored)))["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_two_views_of_one_storage(tmp_path):
    value = w.dictionary({
        "a": w.tensor(w.storage("0", 6), (2, 2), (3, 1)), "b": w.tensor(w.storage("0", 6), (2,), (3,), 2),
    })  # fmt: skip
    read = read_torch_file(write(tmp_path, w.zip_file(value, SIX)))
    np.testing.assert_array_equal(read["a"], [[0, 1], [3, 4]])
    np.testing.assert_array_equal(read["b"], [2, 5])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_that_holds_more(key, tmp_path):
    """Lightning and many scripts store the state dict beside the epoch and the optimizer's numbers."""
    more = b"}(" + w.text("epoch") + w.number(3) + w.text("lr") + b"G" + struct.pack(">d", 0.1)
    value = more + w.text(key) + one() + b"u"
    assert list(read_torch_file(write(tmp_path, w.zip_file(value, SIX)))) == ["a"]


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 4), max_size=4), axes=st.randoms(use_true_random=False), offset=st.integers(0, 3))
def test_any_view_is_the_view_that_numpy_takes(tmp_path_factory, shape, axes, offset):
    order = list(range(len(shape)))
    axes.shuffle(order)
    whole = np.arange(offset + int(np.prod(shape)) + 1, dtype="<f4")
    stored_shape = [shape[axis] for axis in order]
    view = whole[offset : offset + int(np.prod(shape))].reshape(stored_shape).transpose(np.argsort(order))
    strides = [step // 4 for step in view.strides]
    value = one(w.storage("0", len(whole)), view.shape, strides, offset)
    path = write(tmp_path_factory.mktemp("view"), w.zip_file(value, {"0": whole.tobytes()}))
    np.testing.assert_array_equal(read_torch_file(path)["a"], view)


# ----- hostile files: one line each, and nothing is executed -----


def call_to(module: str, function: str, argument: str) -> bytes:
    return w.name(module, function) + w.sequence([w.text(argument)]) + b"R"


def stack_global(module: str, function: str) -> bytes:
    return w.text(module) + w.text(function) + b"\x93"


FLAG = "kmed-torch-file-was-executed"
TOUCH = f"touch {FLAG}"
NESTED = b"(" * 1_000_000 + b"t" * 1_000_000
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # each tuple holds the one before it twice

HOSTILE = {
    "a call to os.system": (w.zip_file(call_to("os", "system", TOUCH), {}), "refers to 'os.system'"),
    "the same in the old format": (w.old_file(call_to("os", "system", TOUCH), {}), "refers to 'os.system'"),
    "a call by STACK_GLOBAL": (
        w.zip_file(stack_global("os", "system") + w.sequence([w.text(TOUCH)]) + b"R", {}), "refers to 'os.system'",
    ),
    "builtins.eval": (w.zip_file(call_to("builtins", "eval", "1"), {}), "refers to 'builtins.eval'"),
    "a name with line breaks": (w.zip_file(stack_global("os\n\n", "sys\ntem"), {}), "refers to 'os"),
    "a name of nested tuples": (w.zip_file(DOUBLED + w.text("os") + b"\x93", {}), "pickle is damaged"),
    "a whole pickled model": (w.zip_file(w.name("my_project.models", "Net") + b")\x81", {}), "my_project.models.Net"),
    "an instance by INST": (w.zip_file(b"(ios\nsystem\n", {}), "the instruction INST"),
    "an object by NEWOBJ": (w.zip_file(w.name("collections", "OrderedDict") + b")\x81", {}), "the instruction NEWOBJ"),
    "an extension code": (w.zip_file(b"\x82\x01", {}), "the instruction EXT1"),
    "attributes of a tensor": (
        w.zip_file(w.tensor(w.storage("0", 6), (6,), (1,)) + b"}b", SIX), "attributes of an object",
    ),
    "a known name called oddly": (
        w.zip_file(w.name("torch._utils", "_rebuild_tensor_v2") + w.sequence([w.number(1)]) + b"R", {}), "do not fit",
    ),
    "a missing storage": (w.zip_file(one(), {}), "the storage '0' is missing"),
    "a missing storage in the old format": (w.old_file(one(w.storage("0", 6, old=True)), {}), "'0' is missing"),
    "a storage of another length": (w.zip_file(one(), {"0": b"1234"}), "should hold 6 values"),
    "a length beyond the file": (
        w.old_file(one(w.storage("0", 6, old=True)), SIX, counts={"0": 2**40}), "more than the file has",
    ),
    "a negative length": (
        w.old_file(one(w.storage("0", 6, old=True)), SIX, counts={"0": -1}), "more than the file has",
    ),
    "a storage of no tensor": (
        w.old_file(one(w.storage("0", 6, old=True)), SIX | {"9": b"1234"}), "belongs to no tensor",
    ),
    "a shape beyond the storage": (w.zip_file(one(shape=(3, 3)), SIX), "reaches beyond the 6 values"),
    "strides beyond the storage": (w.zip_file(one(strides=(2**40, 1)), SIX), "reaches beyond"),
    "negative strides": (w.zip_file(one(strides=(-3, 1)), SIX), "impossible shape or strides"),
    "an offset beyond the storage": (w.zip_file(one(offset=2**40), SIX), "reaches beyond"),
    "a stride of 0 that multiplies the values": (w.zip_file(one(shape=(2**40, 3), strides=(0, 1)), SIX), "reaches"),
    "more axes than numpy has": (w.zip_file(one(shape=(1,) * 65, strides=(1,) * 65), SIX), "impossible shape"),
    "a storage of an unknown kind": (w.zip_file(one(w.storage("0", 6, "QInt8Storage")), SIX), "torch.QInt8Storage"),
    "a dictionary in itself": (w.old_file(b"}q\x01" + w.text("a") + b"h\x01s", {}), "no dictionary of tensors"),
    "tuples that hold 2**60 others": (w.old_file(DOUBLED, {}), "no dictionary of tensors"),
    "a shape that holds 2**60 others": (
        w.zip_file(DOUBLED + w.name("torch._utils", "_rebuild_tensor_v2") + b"(" + w.storage("0", 6) + w.number(0)
                   + b"h\x00" + w.sequence([w.number(1)]) + b"tR", SIX), "impossible shape",
    ),
    "many views of the same values": (
        w.zip_file(w.dictionary({str(number): w.tensor(w.storage("0", 2**16), (2**8, 2**8), (1, 2**8))
                                 for number in range(40)}), {"0": bytes(2**18)}), "views of the same values",
    ),
    "nested tuples of a million": (w.zip_file(NESTED, {}), "no dictionary of tensors"),
    "a shape of nested tuples": (
        w.zip_file(w.name("torch._utils", "_rebuild_tensor_v2") + b"(" + w.storage("0", 6) + w.number(0) + NESTED
                   + w.sequence([w.number(1)]) + b"tR", SIX), "not a readable file|impossible shape",
    ),
    "a text longer than the file": (w.zip_file(b"X" + struct.pack("<I", 2**31) + b"a", {}), "pickle is damaged"),
    "a text longer than memory": (
        w.old_file(b"\x8d" + struct.pack("<Q", 2**62) + b"a", {}), "pickle is damaged",
    ),
    "a name of a storage of 100,000 letters": (w.zip_file(one(w.storage("k" * 100_000, 6)), SIX), "is missing"),
    "a place in the memo beyond memory": (w.zip_file(b"}r" + struct.pack("<I", 2**32 - 1), {}), "no dictionary"),
    "a compressed bomb": (
        w.zip_file(one(w.storage("0", 2**22)), {"0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED), "is compressed",
    ),
    "big-endian values": (w.zip_file(one(), SIX, byteorder=b"big"), "big-endian"),
    "an empty stack": (w.zip_file(b"0", {}), "instruction POP"),
    "no end": (w.zip_file(one(), SIX)[:-40], "not a readable file|neither of the formats"),
    "numbers instead of tensors": (w.zip_file(b"}(" + w.text("a") + w.number(1) + b"u", {}), "no dictionary"),
    "another magic number": (w.old_file(one(w.storage("0", 6, old=True)), SIX, magic=5), "neither of the formats"),
    "an empty file": (b"", "neither of the formats"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither of the formats"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_one_line_and_execute_nothing(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_torch_file(write(tmp_path, data))
    assert "\n" not in str(caught.value) and "weights.pth" in str(caught.value) and len(str(caught.value)) < 400
    assert not pathlib.Path(FLAG).exists()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(tmp_path_factory, data):
    arrays = {"fc.weight": ARRAYS["fc.weight"].astype("float32")}
    compose, old = data.draw(st.sampled_from([(w.zip_file, False), (w.old_file, True)]))
    content = bytearray(compose(w.state_dict(arrays, old=old), w.blocks(arrays)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("flipped"), bytes(content))
    try:
        read = read_torch_file(path)
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in read.values())
