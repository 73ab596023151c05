"""The Autobahn test suite against our WebSocket side, by hand: it needs Python 2.7, which CI may lack.

    python -m tests.support.autobahn --python2 ~/.pyenv/versions/2.7.18/bin/python

makes an environment for it (once), runs all 517 server cases (about a minute) and prints them by section.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.echo_server import EchoServer
from tests.support.processes import wait_for

# What autobahntestsuite 25.10.1 was made with; without autobahn 0.10.9 and txaio 2.1.0 it does not start.
SUITE = (
    *("autobahntestsuite==25.10.1", "autobahn[accelerate,twisted]==0.10.9", "txaio==2.1.0", "six==1.16.0"),
    *("Twisted==19.10.0", "incremental==16.10.1", "zope.interface==4.6.0", "klein==17.10.0"),
    *("pyOpenSSL==19.1.0", "cryptography==3.3.2", "service_identity==18.1.0", "Werkzeug==1.0.1"),
    *("jinja2==2.11.3", "markupsafe==1.1.1", "unittest2==1.1.0"),
)
VIRTUALENV = "virtualenv==20.21.1"  # the last that makes environments for Python 2.7
LARGEST = 16 * 1024 * 1024  # of the cases' messages
BY_DESIGN = ("1.2.", "9.2.", "9.4.", "9.6.", "9.8.")  # they want binary messages back, which are not kept
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED")


def install(environment: Path, python2: str) -> Path:
    """Make the suite's environment if it is not there; returns its ``wstest``."""
    wstest = environment / "bin" / "wstest"
    if not wstest.exists():
        with tempfile.TemporaryDirectory() as tools:
            subprocess.run([sys.executable, "-m", "venv", tools], check=True)
            subprocess.run([f"{tools}/bin/pip", "install", "--quiet", VIRTUALENV], check=True)
            subprocess.run([f"{tools}/bin/virtualenv", "-q", "-p", python2, str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", *SUITE], check=True)
    return wstest


def run(wstest: Path, cases: list[str]) -> dict[str, str]:
    """Run cases; returns their results by number."""
    with tempfile.TemporaryDirectory() as folder:
        server = EchoServer(Path(folder), message_max_bytes=LARGEST)
        server.start()
        try:
            wait_for(server.ready, "the echo server listens")
            told = {"outdir": folder, "servers": [{"agent": "ours", "url": f"ws://127.0.0.1:{server.port}"}]}
            spec = Path(folder, "spec.json")
            spec.write_text(
                json.dumps({**told, "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}})
            )
            command = [str(wstest), "-m", "fuzzingclient", "-s", str(spec)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        finally:
            server.kill()
        report = json.loads(Path(folder, "index.json").read_text())["ours"]
        return {number: result["behavior"] for number, result in report.items()}


def main() -> int:
    """Run, print, and say whether all is as it should be."""
    parser = argparse.ArgumentParser(description="Run the Autobahn test suite's server cases.")
    parser.add_argument("--python2", default="python2.7")
    parser.add_argument("--environment", type=Path, default=Path(".autobahn"))
    parser.add_argument("--case", action="append", help="such as 7.* (all)")
    given = parser.parse_args()
    results = run(install(given.environment.absolute(), given.python2), given.case or ["*"])
    sections = sorted({number.partition(".")[0] for number in results}, key=int)
    for section in sections:
        counted = Counter(how for number, how in results.items() if number.startswith(f"{section}."))
        print(f"{section}: {dict(counted)}")
    bad = [number for number, how in results.items() if how not in GOOD]
    by_design = [number for number in bad if number.startswith(BY_DESIGN)]
    wrong = sorted(set(bad) - set(by_design))
    print(f"passed={len(results) - len(bad)} of={len(results)}; binary, refused by design: {len(by_design)}")
    print(f"failed: {', '.join(wrong) or 'none'}")
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main())
