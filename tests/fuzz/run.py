"""Look for inputs that raise: ``python -m tests.fuzz.run TARGET --seconds N``, after ``pip install atheris``.

What is found goes to ``build/fuzz/TARGET``, an input that raises to ``build/fuzz/TARGET-crash-…``. The kept
corpus, ``tests/fuzz/corpus/TARGET``, is read and not written; ``--keep`` makes it anew, of the fewest files
that cover what all cover together. Further arguments are libFuzzer's.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from hashlib import sha1
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("build/fuzz")
INSTRUMENTED = ["gateway", "backplane", "uvicorn.protocols", "tests.fuzz"]
MOST_FILES, MOST_BYTES = 150, 300 * 1024
LONGEST_INPUT_BYTES = 4096


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="of what is found; default build/fuzz/TARGET")
    parser.add_argument("--keep", action="store_true", help="make the kept corpus anew, and do not fuzz")
    options, flags = parser.parse_known_args()
    found = options.corpus or FOUND / options.target
    kept = CORPUS / options.target
    found.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    if options.keep:
        keep(options.target, kept, found)
        return
    atheris: Any = importlib.import_module("atheris")
    atheris.enabled_hooks.add("str")  # not "RegEx": it fails on patterns of bytes
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[options.target]
    if "-merge_inner=1" not in flags and not any(flag.startswith("-set_cover_merge") for flag in flags):
        plant(options.target, found)
        flags = [*_flags(options.target, options.seconds, found), *flags, str(found), str(kept)]
    # libFuzzer starts itself again to merge, through a shell and by this name.
    atheris.Setup([f"{sys.executable} -m tests.fuzz.run {options.target}", *flags], target)
    atheris.Fuzz()


def _flags(target: str, seconds: int, found: Path) -> list[str]:
    words = found.parent / f"{target}.dict"
    seeds = importlib.import_module("tests.fuzz.seeds")
    quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in seeds.WORDS[target]]
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    return [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-dict={words}",
        f"-artifact_prefix={found.parent}/{target}-",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]


def plant(target: str, folder: Path) -> None:
    """Write a target's seeds into a folder, under the names that libFuzzer would give them."""
    seeds = importlib.import_module("tests.fuzz.seeds")
    for seed in seeds.SEEDS[target]():
        (folder / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


def keep(target: str, kept: Path, found: Path) -> None:
    """Make a kept corpus anew; files that were given a name by hand stay."""
    plant(target, found)
    with tempfile.TemporaryDirectory() as name:
        chosen = Path(name)
        command = [sys.executable, "-m", "tests.fuzz.run", target, "-set_cover_merge=1"]
        subprocess.run([*command, name, str(kept), str(found)], check=True)
        files = sorted(chosen.iterdir(), key=lambda path: path.stat().st_size)
        for path in kept.iterdir():
            if len(path.name) == 40:
                path.unlink()
        count, size = 0, 0
        for path in files:
            count, size = count + 1, size + path.stat().st_size
            if count <= MOST_FILES and size <= MOST_BYTES:
                (kept / path.name).write_bytes(path.read_bytes())
    print(
        f"{target}: {len(list(kept.iterdir()))} of {len(files)} files kept, from {len(list(found.iterdir()))}"
    )


if __name__ == "__main__":
    main()
