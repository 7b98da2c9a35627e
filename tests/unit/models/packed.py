"""A small model as archives hold it, among files that are none of it."""

import hashlib
import io
import tarfile
import zipfile

WEIGHTS = hashlib.sha256(b"weights").digest() * 20_000
MODEL = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "LICENSE": b"free",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
    "original/model.safetensors": b"other",
}


def tar(files: dict[str, bytes], *, below: str = "", mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(below + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], *, below: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(below + name, content)
    return buffer.getvalue()
