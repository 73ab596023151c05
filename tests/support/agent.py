"""An agent that says what a test wants, of one task."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import redis


class Agent:
    """Pushes what an agent pushes.

    Attributes:
        said: so far, in this attempt.
    """

    def __init__(
        self, aes: redis.Redis, session_id: str, task_id: str | None = None, *, tenant_id: str = "acme"
    ) -> None:
        self._aes = aes
        self._tenant_id = tenant_id
        self.session_id = session_id
        self.task_id = task_id or str(uuid4())
        self.said = {"text": "", "reasoning": ""}

    def _push(self, **more: Any) -> None:
        base = {"tenant_id": self._tenant_id, "session_id": self.session_id, "task_id": self.task_id}
        callback = json.dumps({**base, "action_id": str(uuid4()), **more})
        self._aes.lpush(f"orchestrator:{self._tenant_id}:callbacks", callback)

    def say(self, delta: str, part: str = "text") -> None:
        """The next piece of the answer."""
        data = {"delta": delta, "offset": len(self.said[part]), "part": part}
        self._push(action_type="execution.chunk", data=data)
        self.said[part] += delta

    def report(self, **data: Any) -> None:
        """Progress."""
        self._push(action_type="execution.progress", data={"status": "working", **data})

    def finish(self, **result: Any) -> None:
        """The whole answer."""
        told = {"response": self.said["text"], **result}
        self._push(action_type="execution.callback", status="completed", result=told)
