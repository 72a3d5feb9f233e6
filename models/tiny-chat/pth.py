"""Reads and writes `consolidated.00.pth` with bfloat16 weights, as `torch.save` lays it out, without torch.

The file is a zip without compression: `data.pkl` (a pickled dict of tensors that point to storages), one file per
storage, `byteorder` and `version`. Dates are fixed and storages start at a multiple of 64 bytes, so the same weights
always make the same bytes.
"""

import io
import pickle
import struct
import zipfile

import numpy as np

ROOT = "consolidated.00"


def to_bf16(array):
    """float32 -> the upper 16 bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _pickle(shapes):
    """Protocol 2 by hand: the globals of torch are only named, never imported."""
    out = io.BytesIO()

    def text(s):
        out.write(b"X" + struct.pack("<I", len(s.encode())) + s.encode())

    def integer(n):
        out.write(b"J" + struct.pack("<i", n))

    out.write(b"\x80\x02}(")
    for index, (name, shape) in enumerate(shapes):
        strides = [int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape))]
        text(name)
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        text("storage")
        out.write(b"ctorch\nBFloat16Storage\n")
        text(str(index))
        text("cpu")
        integer(int(np.prod(shape)))
        out.write(b"tQ")  # the persistent id
        integer(0)  # storage offset
        for numbers in (shape, strides):
            out.write(b"(")
            for n in numbers:
                integer(n)
            out.write(b"t")
        out.write(b"\x89ccollections\nOrderedDict\n)RtR")  # requires_grad, backward hooks; call _rebuild_tensor_v2
    out.write(b"u.")
    return out.getvalue()


def save(path, tensors):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(name, data):
            info = zipfile.ZipInfo(f"{ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
            # a padding field, as torch's writer has it: id "FB", then so many bytes that the data is aligned
            at = archive.fp.tell() + 30 + len(info.filename) + 4
            pad = -at % 64
            info.extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
            archive.writestr(info, data)

        write("data.pkl", _pickle([(name, array.shape) for name, array in tensors.items()]))
        write("byteorder", b"little")
        for index, array in enumerate(tensors.values()):
            write(f"data/{index}", to_bf16(array).tobytes())
        write("version", b"3\n")


def load(path):
    """name -> float32 array, of a file that `save` wrote."""

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            known = {
                ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: storage.reshape(shape),
                ("torch", "BFloat16Storage"): "bf16",
                ("collections", "OrderedDict"): dict,
            }
            return known[module, name]

        def persistent_load(self, pid):
            return from_bf16(np.frombuffer(archive.read(f"{ROOT}/data/{pid[2]}"), "<u2"))

    with zipfile.ZipFile(path) as archive:
        return Reader(io.BytesIO(archive.read(f"{ROOT}/data.pkl"))).load()
