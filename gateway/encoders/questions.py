"""The ids by which clients of other protocols answer what an agent asks: [P] pure.

They name the task too, because a client posts an answer without saying to what it belongs otherwise.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_QUESTION_ID = re.compile(r"([A-Za-z0-9._~-]{1,128})/input/([A-Za-z0-9._~-]{1,128})", re.ASCII)


class Answer(NamedTuple):
    """What the user says to an ``input_required``.

    Attributes:
        given_up: the user gives no answer; ``value`` is None.
        value: any JSON.
    """

    task_id: str
    input_id: str
    given_up: bool
    value: Any


def question_id(task_id: str, input_id: str) -> str:
    """What a question is called."""
    return f"{task_id}/input/{input_id}"


def read_answer(asked_id: str, value: Any, *, given_up: bool = False) -> Answer | None:
    """The answer to a question that is called so; None if none can be."""
    match = _QUESTION_ID.fullmatch(asked_id)
    return None if match is None else Answer(match[1], match[2], given_up, None if given_up else value)
