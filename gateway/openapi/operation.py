"""One operation, and how the document tells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from backplane.settings import Settings
from gateway.openapi.parameters import parameter
from gateway.openapi.refusals import MISTAKE, PAGES, TOKEN, Refusals, refusal, refusals
from gateway.openapi.schemas import Schema, ref

JSON = "application/json"
RATE_HEADERS = ("RateLimit-Policy", "RateLimit")


class Body(NamedTuple):
    """A request's body.

    Attributes:
        schemas: by name; one of them.
        examples: by name.
        required: whether it may not be left out.
    """

    schemas: tuple[str, ...]
    examples: Mapping[str, Any]
    required: bool = True


class Answer(NamedTuple):
    """An answer to a request that is carried out.

    Attributes:
        schemas: by name; one of them. None at all: it has no body, or is no JSON.
        examples: by name.
        content: of media types that are no JSON, with their examples.
        headers: that it may have.
    """

    description: str
    schemas: tuple[str, ...] = ()
    examples: Mapping[str, Any] = {}  # a NamedTuple's default; never written to
    content: Mapping[str, Mapping[str, str]] = {}
    headers: tuple[str, ...] = ()


class Operation(NamedTuple):
    """What may be asked of an address.

    Attributes:
        scopes: that the token has to have, all of them; none: no token is needed.
        parameters: headers and query; those of the path are known by the path.
        needed: those that must be given.
        needed_without_tokens: those that must be given where no token says them.
        query_token: whether the token may stand in the query.
        refused: beside what `scopes` says.
        harmless: it is answered under any name and to any page, also where there are no tokens.
    """

    name: str
    tag: str
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    scopes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    needed_without_tokens: tuple[str, ...] = ()
    body: Body | None = None
    query_token: bool = False
    refused: tuple[Refusals, ...] = ()
    harmless: bool = False


def describe(operation: Operation, path: str, settings: Settings) -> Schema:
    """An operation object.

    Args:
        path: with its parameters in braces.
    """
    told: Schema = {"operationId": operation.name, "tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        told["description"] = operation.description
    told["security"] = _security(operation, settings)
    parameters = _parameters(operation, path, settings)
    if parameters:
        told["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: _media(_one_of(operation.body.schemas), operation.body.examples)}
        told["requestBody"] = {"required": operation.body.required, "content": content}
    told["responses"] = _responses(operation, settings)
    return told


def _security(operation: Operation, settings: Settings) -> list[Schema]:
    if settings.auth == "none" or not operation.scopes:
        return []
    schemes = ("bearer", "query_token") if operation.query_token else ("bearer",)
    return [{scheme: list(operation.scopes)} for scheme in schemes]


def _parameters(operation: Operation, path: str, settings: Settings) -> list[Schema]:
    needed = {*operation.needed, *(operation.needed_without_tokens if settings.auth == "none" else ())}
    of_path = [parameter(name, "path", True) for name in re.findall(r"{(\w+)}", path)]
    return of_path + [
        parameter(name, "query" if name.islower() and name != "traceparent" else "header", name in needed)
        for name in operation.parameters
    ]


def _responses(operation: Operation, settings: Settings) -> Schema:
    groups = (
        *(() if operation.harmless else (PAGES,)),
        *((TOKEN,) if operation.scopes else ()),
        *operation.refused,
        MISTAKE,
    )
    found = refusals(groups, settings)
    answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    limited = any(answer.headers == RATE_HEADERS for answer in operation.answers.values())
    for status, codes in found.items():
        assert str(status) not in answers, operation.name
        answers[str(status)] = refusal(status, codes, RATE_HEADERS if limited and status == 429 else ())
    return dict(sorted(answers.items()))


def _answer(answer: Answer) -> Schema:
    told: Schema = {"description": answer.description}
    if answer.headers:
        told["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in answer.headers}
    if answer.schemas:
        told["content"] = {JSON: _media(_one_of(answer.schemas), answer.examples)}
    for media_type, examples in answer.content.items():
        told.setdefault("content", {})[media_type] = _media({"type": "string"}, examples)
    return told


def _one_of(schemas: tuple[str, ...]) -> Schema:
    return ref(schemas[0]) if len(schemas) == 1 else {"anyOf": [ref(name) for name in schemas]}


def _media(schema: Schema, examples: Mapping[str, Any]) -> Schema:
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"schema": schema} | ({"examples": shown} if shown else {})
