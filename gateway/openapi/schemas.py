"""The document's schemas: of the types by which bodies are read, and of those in `answers`."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import msgspec

from backplane.keys import ID, TIERS, USER_ID
from backplane.position import CURSOR
from backplane.settings import BUSY_POLICIES
from gateway.errors import ERROR_CODES
from gateway.identity import OPERATOR, TOPIC
from gateway.openapi.answers import ALL
from gateway.openapi.words import OTHER_WORDS, WORDS
from gateway.problem import problem_body
from gateway.topics import ANNOUNCEMENTS

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"
_ID_CHARS = ID.pattern.partition("{")[0]
_TOPIC_CHARS = TOPIC.pattern.partition("{")[0]
_AGENT_TOPIC = "agent:"
_TOPIC_MAX = 128


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": REF.format(name=name)}


def _only(pattern: str, description: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$", "description": description}


_NAMES: dict[str, Schema] = {
    "Id": _only(ID.pattern, "An id."),
    "UserId": _only(USER_ID.pattern, "A user's id."),
    "Cursor": _only(CURSOR.pattern, "A position in a session's log, as the server sent it: `epoch:seq`."),
    "Tier": {"enum": list(TIERS), "description": "A tier."},
}

# See `gateway.topics.check_topic`.
_FREE_TOPIC = rf"(?!agent:|task:|tenant:){_TOPIC_CHARS}+"
_TOPICS = rf"^({_FREE_TOPIC}|(agent|task):{_ID_CHARS}+|{ANNOUNCEMENTS})$"

REVOKED_TENANT: Schema = {"type": "string", "pattern": rf"^({ID.pattern}|\{OPERATOR})$"}

_NARROWED: dict[str, Schema] = {
    "NamedCancelBody.task_id": ref("Id"),
    "InputBody.input_id": ref("Id"),
    "BroadcastBody.tenant_id": ref("Id"),
    "BroadcastTo.tier": ref("Tier"),
    "BroadcastTo.agent_id": {"pattern": f"^{_ID_CHARS}+$", "maxLength": _TOPIC_MAX - len(_AGENT_TOPIC)},
    "BroadcastTo.topic": {"pattern": _TOPICS},
    "BroadcastTo.session_id": ref("Id"),
    "RevocationBody.tenant_id": REVOKED_TENANT,
    "RevocationBody.user_id": ref("UserId"),
    "CloseBody.tenant_id": ref("Id"),
    "CloseBody.session_id": ref("Id"),
    "CloseBody.user_id": ref("UserId"),
    "CloseBody.connection_id": ref("Id"),
}
"""What is checked behind the decoder."""


def _given(name: str) -> Schema:
    """That a field is there, and is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


_DOCUMENT = {"type": "object", "description": "An OpenAPI document, version 3.1."}

_CONDITIONS: dict[str, Schema] = {
    "NamedCancelBody": {"anyOf": [_given("task_id"), _given("client_message_id")]},
    "BroadcastTo": {
        "oneOf": [
            {"required": ["tenant"], "properties": {"tenant": {"const": True}}},
            *map(_given, ("tier", "agent_id", "topic", "session_id")),
        ]
    },
    "RevocationBody": {
        "anyOf": [*map(_given, ("token_id", "user_id", "tenant_id"))],
        "not": {"allOf": [*map(_given, ("token_id", "user_id"))]},
    },
}
"""What is checked of a body as a whole."""


@cache
def schemas(bodies: tuple[type[msgspec.Struct], ...], numeric_limits: tuple[str, ...], most: int) -> Schema:
    """All of them, by name.

    Args:
        bodies: as requests are read.
        numeric_limits: of a tenant, that are whole numbers of at most ``most``.
    """
    _, made = msgspec.json.schema_components((*bodies, *ALL), ref_template=REF)
    for name, schema in made.items():
        _finish(name, schema)
    made["RouterStats"]["additionalProperties"] = {"type": ["number", "boolean"]}
    return {
        **made,
        **_NAMES,
        "Problem": _problem(),
        "Document": _DOCUMENT,
        "TenantLimits": _tenant_limits(numeric_limits, most),
    }


def _finish(name: str, schema: Schema) -> None:
    del schema["title"]  # the name says it
    schema["description"] = _first_words(schema["description"])
    schema.update(_CONDITIONS.get(name, {}))
    for field, about in schema["properties"].items():
        full_name = f"{name}.{field}"
        about["description"] = OTHER_WORDS.get(full_name) or WORDS[field]
        narrowed = _NARROWED.get(full_name)
        if narrowed is not None:
            target = next((one for one in about.get("anyOf", ()) if one != {"type": "null"}), about)
            target.update(narrowed)


def _first_words(docstring: str) -> str:
    return inspect.cleandoc(docstring).partition("\n\n")[0].replace("``", "`").replace("\n", " ")


def _problem() -> Schema:
    example = problem_body(422, "invalid_field", "Expected `str`, got `int` - at `$.message`")
    return {
        "type": "object",
        "description": "What is wrong (RFC 9457).",
        "properties": {
            "type": {"const": "about:blank", "description": "Always this; see `error_code`."},
            "title": {"type": "string", "description": "The status, in words."},
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": {"type": "string", "description": "What is wrong and what to do; for people."},
            "error_code": {
                "enum": list(ERROR_CODES),
                "description": f"A closed list, which sockets share:\n\n{_meanings()}",
            },
            "limit": {"type": "string", "description": "Which limit was reached, if it was one."},
        },
        "required": ["type", "title", "status", "detail", "error_code"],
        "examples": [msgspec.json.decode(example)],
    }  # fmt: skip


def _meanings() -> str:
    return "\n".join(f"- `{code}`: {meaning}" for code, meaning in ERROR_CODES.items())


def _tenant_limits(numeric: tuple[str, ...], most: int) -> Schema:
    number = {"type": "integer", "minimum": 0, "maximum": most, "description": "0: unlimited."}
    return {
        "type": "object",
        "description": "A tenant's own limits; what is left out is its tier's.",
        "properties": {
            **{name: dict(number) for name in numeric},
            "busy_policy": {"enum": list(BUSY_POLICIES), "description": WORDS["busy_policy"]},
        },
        "additionalProperties": False,
    }
