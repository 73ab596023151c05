"""Processes in an unpacked image, as Kubernetes is told to run them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import Process


def boxed(root: Path, words: Sequence[str], environ: dict[str, str], user: str) -> list[str]:
    """The command that runs another one in an image.

    The root cannot be written, /tmp is new and empty, there are no capabilities, and the process is the first
    that it sees. The network is the machine's.

    Args:
        root: the folder.
        words: the command, as the image has it.
        environ: all variables that it gets.
        user: and group, by number.
    """
    uid, gid = user.split(":")
    command = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"]
    command += ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent", "--clearenv"]
    command += ["--ro-bind", str(root), "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    for name, value in environ.items():
        command += ["--setenv", name, value]
    return [*command, "--chdir", "/", "--", *words]


class Boxed(Process):
    """A process in an image; signals go to itself, not to what it runs in."""

    def __init__(
        self, root: Path, words: Sequence[str], environ: dict[str, str], user: str, log: Path
    ) -> None:
        super().__init__(boxed(root, words, environ, user), {}, log)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        [inner] = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        os.kill(int(inner), number)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; returns its exit status."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)


def run(root: Path, words: Sequence[str], environ: dict[str, str], user: str) -> tuple[int, str]:
    """Run a command to its end: its exit status, and what it printed."""
    command = boxed(root, words, environ, user)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout
