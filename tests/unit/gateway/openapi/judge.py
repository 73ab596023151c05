"""Holds answers and bodies against the document, more strictly than a client would: all fields are told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from gateway.app import build_admin_app, build_app
from gateway.openapi.document import document
from tests.unit.gateway.web import StubPod, with_tokens

Document = dict[str, Any]
Operation = dict[str, Any]

_TOLD_HEADERS = ("retry-after", "ratelimit", "ratelimit-policy", "www-authenticate", "allow", "etag")


def document_of(pod: StubPod, *, admin: bool = False) -> Document:
    """What the pod would serve, decoded."""
    app = (build_admin_app if admin else build_app)(pod.as_pod())
    routes: Any = app.routes
    made: Document = json.loads(json.dumps(document(pod.settings, routes)))
    return made


@cache
def with_jwt() -> Document:
    """Of a pod whose clients need tokens, with all that it can have."""
    return document_of(with_tokens(access_check_url="http://access.test/"))


@cache
def without_tokens() -> Document:
    return document_of(StubPod())


def operations(told: Document) -> Iterator[tuple[str, str, Operation]]:
    """Method, path and operation."""
    for path, item in told["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def closed(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas, with no field allowed that they do not name."""
    return {
        name: {"additionalProperties": False, **schema} if "properties" in schema else schema
        for name, schema in schemas.items()
    }


def validator(told: Document, schema: dict[str, Any], *, strict: bool = False) -> Draft202012Validator:
    """Of a schema that refers to the document's."""
    schemas = told["components"]["schemas"]
    known = {"schemas": closed(schemas) if strict else schemas}
    return Draft202012Validator(_for_python({**schema, "components": known}))


def _for_python(schema: Any) -> Any:
    """JSON Schema's ``$`` is the end of the text (ECMA-262), Python's may stand before a last line end."""
    if isinstance(schema, list):
        return [_for_python(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.replace("$", r"\Z")
        if name == "pattern" and isinstance(value, str)
        else _for_python(value)
        for name, value in schema.items()
    }


def find(told: Document, method: str, url: str) -> tuple[str, Operation]:
    """The path and the operation of an address; where two fit, that which has no parameter there."""
    path = httpx.URL(url).path
    fits = [one for one in told["paths"] if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), path)]
    best = min(fits, key=lambda one: one.count("{"))
    return best, told["paths"][best][method.lower()]


def complaints(told: Document, method: str, url: str, answer: httpx.Response) -> list[str]:
    """What the document does not say of an answer, or says otherwise."""
    _, operation = find(told, method, url)
    response = operation["responses"].get(str(answer.status_code))
    if response is None:
        return [f"the status {answer.status_code} is not told"]
    headers = {name.lower(): resolved(told, one) for name, one in response.get("headers", {}).items()}
    found = [name for name, one in headers.items() if one["required"] and name not in answer.headers]
    found += [name for name in _TOLD_HEADERS if name in answer.headers and name not in headers]
    return [f"the header {name}" for name in found] + _about_content(told, response, answer)


def _about_content(told: Document, response: Mapping[str, Any], answer: httpx.Response) -> list[str]:
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    content = response.get("content", {})
    if media_type not in content:
        return [] if not content and not answer.content else [f"the media type {media_type!r}"]
    value = json.loads(answer.content) if media_type.endswith("json") else answer.text
    errors = validator(told, content[media_type]["schema"], strict=True).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def resolved(told: Document, about: Mapping[str, Any]) -> Any:
    """What something refers to, or it."""
    found: Any = about
    if "$ref" in about:
        found = told
        for name in about["$ref"].removeprefix("#/").split("/"):
            found = found[name]
    return found
