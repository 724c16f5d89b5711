"""Change the code of the guarantees a little, many times, and see whether the tests notice.

python scripts/mutation.py [--sample 8] [--seed 0] [--output results/trust/mutation.json]

mutmut makes and runs the mutants, of a copy of the source in ``mutants/``; ``[tool.mutmut]`` in pyproject.toml says of
which modules and with which tests. Of every module a random sample is tried. What was judged of survivors in the output
file is kept there; a survivor that nobody judged is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

SCHEMA = "invertible-attention/mutation/1"
UNJUDGED = "not examined"
MUTMUT = Path(sys.executable).with_name("mutmut")


def settings() -> dict[str, Any]:
    """Return what pyproject.toml tells mutmut."""
    return tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]


def mutants(module: str) -> dict[str, int | None]:
    """Return the exit status of the tests for every mutant of a module, ``None`` where they have not run."""
    meta = Path("mutants") / f"{module}.meta"
    return json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"] if meta.exists() else {}


def run(names: list[str]) -> None:
    """Let mutmut run these mutants, one after another and with one thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([str(MUTMUT), "run", "--max-children", "1", *names], check=True, env=environment)


def change(name: str, module: str) -> str:
    """Return the lines a mutant removes and adds."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # pyright: ignore[reportMissingImports]

    lines = get_diff_for_mutant(name, path=module).splitlines()
    changed = [line for line in lines if line[:1] in ("-", "+") and line[:3] not in ("---", "+++")]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in changed)


def function_of(name: str) -> str:
    """Return the function a mutant is one of.

    Example:
        >>> function_of("package.module.xǁFixedPointǁstep__mutmut_3"), function_of("package.module.x_attend__mutmut_1")
        ('FixedPoint.step', 'attend')
    """
    return name.rpartition(".")[2].partition("__mutmut_")[0].removeprefix("x").strip("ǁ_").replace("ǁ", ".")


def judged(path: Path) -> dict[tuple[str, str, str], str]:
    """Return the judgements in an earlier output, by module, function and change."""
    modules = json.loads(path.read_text(encoding="utf-8"))["modules"] if path.exists() else {}
    return {
        (module, survivor["function"], survivor["change"]): survivor["judgement"]
        for module, found in modules.items()
        for survivor in found["survivors"]
    }


def summarize(module: str, tried: list[str], known: dict[tuple[str, str, str], str]) -> dict[str, Any]:
    """Return how the mutants of a module fared, and what is known of those that survived."""
    from mutmut.stats import status_by_exit_code  # pyright: ignore[reportMissingImports]

    codes = mutants(module)
    # Where the run was cut short, only what has run counts.
    fates = {name: status_by_exit_code[codes[name]] for name in tried if codes[name] is not None}
    alive = [name for name, fate in fates.items() if fate not in ("killed", "timeout", "segfault")]
    survivors = []
    for name in alive:
        survivor = {"function": function_of(name), "change": change(name, module)}
        survivor["judgement"] = known.get((module, *survivor.values()), UNJUDGED)
        survivors.append(survivor)
    return {
        "mutants": len(codes),
        "tried": len(fates),
        "killed": len(fates) - len(alive),
        "survived": len(alive),
        "survivors": survivors,
    }


def main() -> int:
    """Run a sample of the mutants, write the outcome, and return 1 where a survivor was not examined."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=8, help="mutants to try of each module; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--output", type=Path, default=Path("results/trust/mutation.json"))
    parser.add_argument(
        "--summary", action="store_true", help="of the mutants that have run, without running any"
    )
    arguments = parser.parse_args()
    modules: list[str] = settings()["only_mutate"]
    if not arguments.summary:
        run(["invertible_attention.solvers.fixed_point.*"])  # generates all
    chosen = {}
    for module in modules:
        names = sorted(mutants(module))
        count = min(arguments.sample, len(names)) if arguments.sample else len(names)
        chosen[module] = random.Random(f"{arguments.seed} {module}").sample(names, count)
    if not arguments.summary:
        run([name for names in chosen.values() for name in names])
    known = judged(arguments.output)
    found = {module: summarize(module, names, known) for module, names in chosen.items()}
    content = {"schema": SCHEMA, "sample": arguments.sample, "seed": arguments.seed, "modules": found}
    write_json(arguments.output, content | {"run": run_metadata()})
    new = sum(survivor["judgement"] == UNJUDGED for item in found.values() for survivor in item["survivors"])
    tried, killed = (sum(item[name] for item in found.values()) for name in ("tried", "killed"))
    print(f"{killed} of {tried} mutants were noticed; {new} of the others have not been examined")
    return 1 if new else 0


if __name__ == "__main__":
    raise SystemExit(main())
