"""Read the fields of a `Score` from the JSON of an evaluation."""

from __future__ import annotations

from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import PointColumns, WrittenScore, in_range, unpacked, within
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.older_files import SCHEMA_1, upgraded
from bivallate.evaluation.point_columns import ROBUST
from bivallate.lower.threat import Threat
from bivallate.parts import decode
from bivallate.schema import check_fits

__all__ = ["SCHEMA", "score_fields"]

SCHEMA = "bivallate-evaluation-2"


def score_fields(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Score` that an evaluation's JSON holds, of this or an earlier schema.

    Raises:
        UserError: it is not an evaluation, or an entry does not fit; the message names the key.
    """
    if isinstance(content, dict) and content.get("schema") == SCHEMA_1:
        content = upgraded(content) | {"schema": SCHEMA}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"this is not an evaluation's JSON: schema must be {SCHEMA!r}, got {got!r}")
    entry = check_fits(WrittenScore, content, "evaluation")
    columns = {key: unpacked(column, key) for key, column in entry["points"].items()}
    fields = {
        "attack": entry["attack"],
        "detail": decode(entry["attack_detail"], "attack_detail"),
        "threat": check_fits(Threat, decode(entry["threat"], "threat"), "threat"),
        "classes": entry["classes"],
        "y": columns["y"].long(),
        "predicted": columns["predicted"].long(),
        "margin": columns["margin"],
        "broken_at": columns["stage"].long(),
        "index": columns["index"].long(),
        "stage_names": tuple(entry["stage_names"]),
        "passes": entry["passes"],
        "seconds": entry["seconds"],
        "seed": entry["seed"],
        "data_fingerprint": entry["data_fingerprint"],
        "model_fingerprint": entry["model_fingerprint"],
        "warnings": tuple(entry["warnings"]),
        "identity": Identity.of(entry.get("identity")),
        "search_precision": entry.get("search_precision", "float32"),
        "more": {name: columns[name] for name in columns if name not in PointColumns.__annotations__},
    }
    within(len(fields["y"]), **columns)
    classes, stages = fields["classes"], fields["stage_names"]
    in_range(y=(fields["y"], 0, classes - 1), predicted=(fields["predicted"], 0, classes - 1))
    in_range(stage=(fields["broken_at"], ROBUST, len(stages)))
    return fields
