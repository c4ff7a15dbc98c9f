"""The JSON Schema of a study file."""

from __future__ import annotations

from cellray.losses import LOSSES, PRESETS, RELEASED
from cellray.losses.check import CHECKS
from cellray.metrics import METRICS
from cellray.model import MODELS
from cellray.study.loss import check_loss_settings
from cellray.study.network import ModelConfig
from cellray.study.problems import Schema
from cellray.study.quirks import QUIRKS
from cellray.study.whole import Study


def study_schema() -> Schema:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    types = schema["$defs"]
    place = types["EvaluationConfig"]["properties"]["rank_by"]
    place.pop("type")
    place["enum"] = list(METRICS)
    place = types["ModelConfig"]["properties"]["name"]
    place.pop("type")
    place["anyOf"] = [{"enum": list(MODELS)}, {"type": "string", "pattern": ":"}]
    trained = [name for name, quirk in QUIRKS.items() if quirk.acts_on == "training"]
    for place, known in (
        (schema["properties"]["quirks"], list(QUIRKS)),
        (schema["properties"]["allow"], list(CHECKS)),
        (types["ConfigurationConfig"]["properties"]["quirks"], trained),
    ):
        place["items"] = {"enum": known}
    for owner in ("TermConfig", "LossConfig"):
        place = types[owner]["properties"]["name"]
        names: list[Schema] = [{"enum": [*LOSSES, *RELEASED, *PRESETS]}, {"type": "string", "pattern": ":"}]
        place.pop("type", None)
        place["anyOf"] = [*names, {"type": "null"}] if owner == "LossConfig" else names
    for key, owner in (("model", "ModelConfig"), ("training", "TrainingConfig")):
        # All settings of both have defaults, so that the whole also describes a part.
        place = types["ConfigurationConfig"]["properties"][key]
        types["ConfigurationConfig"]["properties"][key] = {
            "$ref": f"#/$defs/{owner}",
            "description": place["description"],
        }
    types["ModelConfig"]["allOf"] = [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {"properties": {"settings": {"propertyNames": {"enum": list(ModelConfig(name=name).settings)}}}},
        }
        for name in MODELS
    ]
    for owner in ("TermConfig", "LossConfig"):
        types[owner]["allOf"] = [
            {
                "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "then": {"properties": {"settings": {"propertyNames": {"enum": list(check_loss_settings(name, {}))}}}},
            }
            for name in LOSSES | RELEASED
        ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
