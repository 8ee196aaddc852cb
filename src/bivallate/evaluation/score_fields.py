"""Read the fields of a `Score` from the JSON of an evaluation."""

from __future__ import annotations

from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import PointColumns, WrittenScore, in_range, unpacked, within
from bivallate.evaluation.evaluation_identity import Identity
from bivallate.evaluation.older_files import SCHEMA_1, upgraded
from bivallate.evaluation.point_columns import ROBUST
from bivallate.evaluation.threat_union import ThreatUnion
from bivallate.lower.threat import Threat
from bivallate.parts import decode
from bivallate.schema import check_fits

__all__ = ["SCHEMA", "OtherJSON", "score_fields"]

SCHEMA = "bivallate-evaluation-2"
FAMILY = "bivallate-evaluation-"  # with it the schema of every version begins


class OtherJSON(UserError):
    """JSON that neither is an evaluation nor looks like one of an unknown version."""


def score_fields(content: Any, name: str = "") -> dict[str, Any]:
    """The arguments of `Score` that an evaluation's JSON holds, of this or an earlier schema.

    Args:
        content: the parsed JSON.
        name: of its file. It is read for the first schema alone, which has no other identity.

    Raises:
        OtherJSON: it is not an evaluation.
        UserError: its schema is unknown, or an entry does not fit; the message names the key.
    """
    if isinstance(content, dict) and content.get("schema") == SCHEMA_1:
        content = upgraded(content, name) | {"schema": SCHEMA}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        kind = UserError if _looks_like_one(content) else OtherJSON
        raise kind(f"this is not an evaluation's JSON: schema must be {SCHEMA!r}, got {got!r}")
    entry = check_fits(WrittenScore, content, "evaluation")
    columns = {key: unpacked(column, key) for key, column in entry["points"].items()}
    fields = {
        "attack": entry["attack"],
        "detail": decode(entry["attack_detail"], "attack_detail"),
        "threat": check_fits(Threat | ThreatUnion, decode(entry["threat"], "threat"), "threat"),
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


def _looks_like_one(content: Any) -> bool:
    """Whether content without a known schema is an evaluation of another version, or a damaged one."""
    if not isinstance(content, dict):
        return False
    return str(content.get("schema")).startswith(FAMILY) or {"attack_detail", "points"} <= content.keys()
