"""A stand-in for the AES, for development and tests: takes real actions, pushes real callbacks.

What it answers is pure (`read_action`, `callbacks_for`); `DemoAgent` carries actions in and callbacks out.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, cast

import msgspec
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError, ResponseError

from backplane.keys import TIERS, Keys
from backplane.log import Logger, get_logger
from backplane.log_level import LevelSwitch
from backplane.redis_client import Client, parse_redis_url
from backplane.settings import Settings
from backplane.supervise import run_until
from backplane.trace_context import TraceContext, metadata, trace_of
from backplane.tracing import NO_TRACER, Span, Tracer, open_tracer

_BLOCK_S = 0.5  # bounds how long a stop takes
_FINISH_S = 2.0
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 2.0
_MOST_CHUNKS = 40  # a long answer comes several words at a time

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_T = TypeVar("_T")


class Run(msgspec.Struct, tag_field="action_type", tag="execution.agent_run"):
    """What the demo agent needs of a ``ChatProcessAction``; ``timeout`` is in seconds."""

    task_id: _Text
    tenant_id: _Text
    session_id: _Text
    callback_queue: _Text
    message: str
    tenant_tier: str | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 60
    metadata: msgspec.Raw = msgspec.Raw(b"null")


class Cancel(msgspec.Struct, tag_field="action_type", tag="chat.cancel"):
    """A cancel action. Answers here take no time worth cancelling, so it is only understood."""

    task_id: _Text


Action = Run | Cancel
_action_decoder = msgspec.json.Decoder(Action)


def read_action(raw: bytes) -> Action:
    """Read an action.

    Raises:
        ValueError: it is not JSON, of no known type, or lacks something that an answer needs.
    """
    try:
        action: Action = _action_decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return action


def callbacks_for(run: Run, now: float, execution_s: float, trace: TraceContext | None = None) -> list[bytes]:
    """All callbacks that answer an action, in the order of pushing; none for the message ``silence``.

    Args:
        now: seconds since 1970.
        execution_s: told as ``execution_time``.
        trace: the span of the run, which all of them pass on.
    """
    wish = run.message.strip()
    if wish == "silence":
        return []
    base = {
        "task_id": run.task_id,
        "tenant_id": run.tenant_id,
        "tenant_tier": run.tenant_tier,
        "session_id": run.session_id,
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(),
        "metadata": metadata(None if trace is None else trace.traceparent),
    }
    if wish == "fail":
        parts = [_progress(), _failed(execution_s)]
    else:
        answer = f"You said: {run.message}\nI am the demo agent, so that is all I know."
        parts = [_progress(), *_chunks(answer), _completed(run.message, answer, execution_s)]
    last = len(parts) - 1
    return [
        msgspec.json.encode({"action_id": _action_id(run.task_id, n, last), **base, **part})
        for n, part in enumerate(parts)
    ]


def _action_id(task_id: str, n: int, last: int) -> str:
    """One id per task for the terminal callback, as the AES has it, so that a copy of it is known as one."""
    return f"exec_cb_{task_id}" if n == last else f"exec_{n}_{task_id}"


def _progress() -> dict[str, Any]:
    data = {"status": "working", "step": "thinking", "progress": 0.1, "message": "Thinking about it"}
    return {"action_type": "execution.progress", "data": data}


def _chunks(answer: str) -> list[dict[str, Any]]:
    words = re.findall(r"\S+\s*", answer)
    words_a_chunk = -(-len(words) // _MOST_CHUNKS)
    chunks, offset = [], 0
    for start in range(0, len(words), words_a_chunk):
        delta = "".join(words[start : start + words_a_chunk])
        data = {"delta": delta, "offset": offset, "part": "text"}
        chunks.append({"action_type": "execution.chunk", "data": data})
        offset += len(delta)
    return chunks


def _completed(message: str, answer: str, execution_s: float) -> dict[str, Any]:
    result = {"response": answer, "sources": [], "agent_info": {"model_used": "demo"}}
    tokens = {"prompt_tokens": len(message.split()), "completion_tokens": len(answer.split())}
    return _terminal("completed", result, execution_s, tokens)


def _failed(execution_s: float) -> dict[str, Any]:
    error = {"type": "DemoFailure", "message": "The demo agent failed, as it was asked to."}
    return _terminal("failed", {"error": error}, execution_s, {"prompt_tokens": 1, "completion_tokens": 0})


def _terminal(
    status: str, result: dict[str, Any], execution_s: float, tokens: dict[str, int]
) -> dict[str, Any]:
    return {
        "action_type": "execution.callback",
        "status": status,
        "result": result,
        "execution_time": execution_s,
        "tokens_used": {**tokens, "total_tokens": sum(tokens.values())},
    }


class DemoAgent:
    """Takes actions and answers them.

    Args:
        redis: a client with no fewer connections than `work` runs.
        keys: names.
        stop: once it is set, no further action is begun.
        think_s: time from taking an action to its last callback.
        tracer: gets the spans of runs.
    """

    def __init__(
        self,
        redis: Client,
        keys: Keys,
        log: Logger,
        stop: asyncio.Event,
        think_s: float,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._redis = redis
        # A BRPOP that waits longer than redis-py's socket timeout is given up by the client alone, and Redis
        # may then pop an action into a dead connection.
        if isinstance(redis, RedisCluster):
            clustered, kwargs = True, redis.connection_kwargs
        else:
            clustered, kwargs = False, redis.connection_pool.connection_kwargs
        patience_s = kwargs.get("socket_timeout") or math.inf
        self._block_s = min(_BLOCK_S, patience_s / 2)
        queues = [keys.actions(tier) for tier in reversed(TIERS)]
        # On a cluster each queue is on a node of its own, and no command waits for several.
        self._queues = [[queue] for queue in queues] if clustered else [queues]
        self._log = log
        self._stop = stop
        self._think_s = think_s
        self._tracer = tracer
        self._turns: set[asyncio.Task[None]] = set()
        self._redis_away = False
        self._answering = 0
        self.answered = 0

    async def work(self, number: int = 0) -> None:
        """Take and answer one action after the other, until cancelled.

        Args:
            number: of the worker; on a cluster it says from which tier's queue it takes.

        A cancelled `work` leaves its turn to `finish`: an action that is just being popped would be lost.
        """
        while True:
            turn = asyncio.create_task(self._turn(self._queues[number % len(self._queues)]))
            self._turns.add(turn)
            turn.add_done_callback(self._turns.discard)
            await asyncio.shield(turn)

    async def finish(self, timeout_s: float) -> None:
        """Let what is in progress end, for up to ``timeout_s``; call it when no `work` runs any more."""
        turns = set(self._turns)
        if not turns:
            return
        await asyncio.wait(turns, timeout=timeout_s)
        if self._answering:
            self._log.warning("answers_cut_off", count=self._answering)
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)

    async def _turn(self, queues: list[str]) -> None:
        taken = await self._patiently(lambda: self._take(queues))
        if taken is None:
            return
        queue, raw = taken
        if self._stop.is_set():  # taken between the signal and the end of BRPOP: next in line for another
            await self._patiently(lambda: self._redis.rpush(queue, raw))
            return
        try:
            action = read_action(raw)
        except ValueError as error:
            self._log.warning("action_unreadable", error=str(error))
            return
        if isinstance(action, Run):
            await self._answer(action)

    async def _take(self, queues: list[str]) -> tuple[bytes, bytes] | None:
        taken = await self._redis.brpop(queues, timeout=self._block_s)
        return cast("tuple[bytes, bytes] | None", taken)

    async def _answer(self, run: Run) -> None:
        parent, began_ns, error = trace_of(run.metadata), time.time_ns(), ""
        own = None if parent is None else parent.child(os.urandom(8).hex())
        callbacks = callbacks_for(run, time.time(), self._think_s, own)
        log = self._log.bind(
            tenant_id=run.tenant_id, session_id=run.session_id, task_id=run.task_id,
            trace_id=None if own is None else own.trace_id,
        )  # fmt: skip
        log.debug("action_taken")
        self._answering += 1
        try:
            async with asyncio.timeout(run.timeout):  # then the task has ended without it
                for callback in callbacks:
                    await asyncio.sleep(self._think_s / len(callbacks))
                    await self._push(run.callback_queue, callback)
                    log.debug("callback_pushed")
        except TimeoutError:
            error = "timeout"
            log.warning("answer_too_late")
        except ResponseError as refusal:
            error = "callback_queue_unusable"
            log.warning("callback_queue_unusable", queue=run.callback_queue, error=str(refusal))
        else:
            self.answered += bool(callbacks)
        finally:
            self._answering -= 1
        if self._tracer.on and parent is not None and own is not None and own.sampled:
            self._tracer.record(_span(run, own, parent, began_ns, error))

    async def _push(self, queue: str, callback: bytes) -> None:
        """Push once more if the reply is lost: the router knows a copy by its ``action_id``."""
        await self._patiently(lambda: self._redis.lpush(queue, callback))

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask Redis until it answers; an answer that would be the same again (WRONGTYPE) is raised."""
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                reply = await ask()
            except RedisError as error:
                if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
                    raise
                self._note_redis(away=True, error=str(error) or type(error).__name__)
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(delay_s * 2, _RETRY_MOST_S)
            else:
                self._note_redis(away=False)
                return reply

    def _note_redis(self, *, away: bool, **details: str) -> None:
        """Log that Redis went or came back, once for all turns."""
        if away != self._redis_away:
            self._redis_away = away
            self._log.warning("redis_away" if away else "redis_back", **details)


def _span(run: Run, own: TraceContext, parent: TraceContext, began_ns: int, error: str) -> Span:
    attributes: dict[str, str | int | bool] = {
        "messaging.system": "redis",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.message.conversation_id": run.session_id,
        "orchestrator.tenant_id": run.tenant_id,
        "orchestrator.session_id": run.session_id,
        "orchestrator.task_id": run.task_id,
    }
    return Span("run", "consumer", own, parent, began_ns, time.time_ns(), attributes, error=error)


async def run_demo_agent(settings: Settings, *, think_s: float = 0.3, workers: int = 8) -> int:
    """Answer actions until SIGTERM or SIGINT.

    Args:
        think_s: time that an answer takes, in seconds.
        workers: answers at the same time.

    Returns:
        The exit status: 0 after a clean stop.

    Raises:
        ConfigurationError: REDIS_URL or a template is not usable.
    """
    log = get_logger(process="demo-agent")
    tracer = open_tracer(settings, "demo-agent", f"{socket.gethostname()}-{os.getpid()}", log)
    LevelSwitch(settings.log_level, log).listen()
    target = parse_redis_url(settings.redis_url)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with target.client() as redis:
        agent = DemoAgent(redis, settings.keys(), log, stop, think_s, tracer)
        log.info("demo_agent_started", redis=target.shown, workers=workers)
        clean = await run_until(stop, {f"worker-{n}": agent.work(n) for n in range(workers)}, log)
        await agent.finish(_FINISH_S)
    await tracer.close()
    log.info("demo_agent_stopped", clean=clean, answered=agent.answered)
    return 0 if clean else 1
