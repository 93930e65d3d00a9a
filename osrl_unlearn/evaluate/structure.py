"""The structure of report.json."""
import json
import math
import numbers
import os

SCHEMA_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.schema.json")


def check(report, schema_file=SCHEMA_FILE, name="report"):
    """Raise ValueError, naming the place, unless ``report`` has the structure of ``schema_file``.

    Looks at types, required keys, lengths of lists, constants and enumerations, and refuses NaN and infinity; keys that
    the schema does not know are let through.
    """
    with open(schema_file, encoding="utf-8") as file:
        schema = json.load(file)
    walk(report, schema, schema.get("definitions", {}), name)


_TYPES = {"object": dict, "array": (list, tuple), "string": str, "boolean": bool, "null": type(None),
          "number": numbers.Real, "integer": numbers.Integral}


def _is(value, kind):
    # Python counts True as a number, JSON does not.
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def walk(value, schema, definitions, path):
    """:func:`check` for any schema; ``definitions`` are what its references name, ``path`` is what errors call it."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise ValueError("{}: expected {}, got {}".format(path, " or ".join(kinds), type(value).__name__))
    if isinstance(value, numbers.Real) and not math.isfinite(value):
        raise ValueError("{}: expected a finite number, got {}".format(path, value))
    if "const" in schema and value != schema["const"]:
        raise ValueError("{}: expected {}, got {!r}".format(path, schema["const"], value))
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError("{}: expected one of {}, got {!r}".format(path, ", ".join(map(str, schema["enum"])), value))
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                raise ValueError("{}.{} is missing".format(path, name))
        for name, item in value.items():
            walk(item, schema.get("properties", {}).get(name, schema.get("additionalProperties", {})), definitions,
                  "{}.{}".format(path, name))
    if isinstance(value, (list, tuple)):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            raise ValueError("{}: expected {} items, got {}".format(
                path, schema.get("maxItems") or "at least {}".format(schema["minItems"]), len(value)))
        for n, item in enumerate(value):
            walk(item, schema.get("items", {}), definitions, "{}[{}]".format(path, n))
    if "if" in schema:
        try:
            walk(value, schema["if"], definitions, path)
        except ValueError:
            return
        walk(value, schema["then"], definitions, path)
