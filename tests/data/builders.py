"""Writers of tiny data sets in the layouts that users bring."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["cat", "dog", "eel"]


def pictures(n: int, shape: tuple[int, ...] = (8, 8, 3), seed: int = 0) -> np.ndarray:
    """(n, H, W[, 3]) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    """The array as an encoded image."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list | pa.Array,
    names: list[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 4,
) -> Path:
    """A Parquet file in the hub's layout, some rows a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.array(
        [None if data is None else {"bytes": data, "path": f"{k}.png"} for k, data in enumerate(images)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table(dict(zip(columns, (struct, pa.array(labels)), strict=True)))
    if names is not None:
        label = {"names": names, "_type": "ClassLabel"}
        features = {columns[0]: {"_type": "Image"}, columns[1]: label}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


def picture(name: str) -> bytes:
    """A PNG that no other name gives."""
    seed = zlib.crc32(name.encode("utf-8", "surrogateescape"))
    return png(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8))


def grow(root: Path, names: list[str]) -> Path:
    """Files of these names, each image another one."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name) if path.suffix.lower() in (".png", ".jpg", ".jpeg") else b"text")
    return root


def pixels_of(encoded: bytes) -> bytes:
    """(H, W, 3) of an encoded image."""
    return np.asarray(Image.open(io.BytesIO(encoded))).tobytes()
