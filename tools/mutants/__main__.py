"""Do the checks and the tests notice small slips in the formulas? Makes every one of them, one at a time, and counts.

python -m tools.mutants [MODULE ...]   (make mutants): the modules of the mathematics, unless some are named.
A run that was stopped goes on where it was: results are kept in .mutants/, for as long as sources and tests stay.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ast
import hashlib
import json
import platform
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import tqdm

from ddpm_lib import CHAPTER
from tools.mutants import children, judge
from tools.mutants.operators import Mutant, mutants

ROOMS_OF_MATHEMATICS = ("gaussian", "diffusion", "exact", "samplers", "evaluation")
EQUIVALENT = Path(__file__).parent / "equivalent.toml"
KEPT = children.ROOT / ".mutants" / "results.jsonl"
ENOUGH = 0.95


def modules() -> dict[str, bool]:
    """The modules that are mutated: {name: whether only the functions that name an equation are}."""
    found = {}
    for module in CHAPTER:
        if module.split(".")[0] in ROOMS_OF_MATHEMATICS:
            found[module] = False
        elif module.split(".")[0] != "checks":
            tree = ast.parse(children.path_of(module).read_text(encoding="utf-8"))
            named = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            if any((ast.get_docstring(node) or "").startswith("Eq. ") for node in named):
                found[module] = True
    return found


def all_mutants(names: list[str] | None = None) -> list[Mutant]:
    listed = modules()
    return [
        mutant
        for module in names or listed
        for mutant in mutants(module, children.path_of(module).read_text(encoding="utf-8"), listed[module])
    ]


def equivalent() -> dict[str, str]:
    """{key of a mutant: why it changes nothing that anybody could notice}."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    return {f"{e['where']}: {before} -> {after}": e["reason"] for e in entries for before, after in e["changes"]}


class Results:
    """What is known, kept in a file: a line each, as soon as it is known, with a stamp of the files it rests on."""

    def __init__(self, path: Path):
        self.library = _fingerprint(children.LIBRARY.rglob("*.py"), platform.python_version(), torch.__version__)
        shared = sorted((children.ROOT / "tests").rglob("conftest.py"))
        files = {path.relative_to(children.ROOT).as_posix(): path for path in judge.test_files()}
        self.files = {name: _fingerprint([file, *shared], name, self.library) for name, file in files.items()}
        self.everything = _fingerprint([], *self.files.values())
        stamps = {self.library, self.everything, *self.files.values()}
        self.path, self.known = path, {}
        path.parent.mkdir(exist_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            entry = json.loads(line)
            if entry["stamp"] in stamps:
                self.known[entry["key"]] = entry
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(entry) + "\n" for entry in self.known.values()), encoding="utf-8")
        part.replace(path)

    def add(self, key: str, stamp: str, **found) -> None:
        self.known[key] = {"key": key, "stamp": stamp} | found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.known[key]) + "\n")

    def judged(self, key: str, check: str, test: str) -> None:
        """A mutant: the first check that noticed it, or ""; the first test, or ""."""
        stamp = self.library if check else self.files.get(test.partition("::")[0], self.everything)
        self.add(key, stamp, check=check, test=test)


def _fingerprint(paths: Iterable[Path], *words: str) -> str:
    digest = hashlib.sha256("\n".join(words).encode())
    for path in sorted(paths):
        digest.update(f"\n{path.relative_to(children.ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def baseline(results: Results, jobs: int) -> tuple[dict, dict]:
    """What checks and tests reach without mutants: {name: {"seconds", "reached"}} of either."""
    names, known = list(modules()), results.known
    if "checks" not in known:
        ((_, checks),) = children.each([None], judge.check_names, lambda _: 600, 1)
        tasks = [(name, module, names) for name, module in checks]
        found = dict(_covered("what the checks reach", tasks, judge.cover_check, jobs))
        results.add(
            "checks", results.library, found={name: found[name] | {"module": module} for name, module in checks}
        )
    tasks = [(file, names) for file in results.files if file not in known]
    for file, found in _covered("what the tests reach", tasks, judge.cover_tests, jobs) if tasks else ():
        results.add(file, results.files[file], found=found)
    tests = {name: one for file in results.files for name, one in known[file]["found"].items()}
    if tasks:
        list(children.each([list(tests)], judge.collect, lambda _: 600, 1))
    return known["checks"]["found"], tests


def _covered(title: str, tasks: list, cover: Callable, jobs: int) -> Iterator[tuple[str, dict]]:
    with tqdm.tqdm(total=len(tasks), desc=title, mininterval=1) as bar:
        for (name, *_), found in children.each(tasks, cover, lambda _: 1800, jobs):
            if found is None:
                raise children.Broken(f"{name} ended the process, without a mutant")
            yield name, found
            bar.update()


def reaching(mutant: Mutant, found: dict) -> list[str]:
    """Those that run a line of the mutant's, the quickest first."""
    low, high = mutant.reach or (0, sys.maxsize)
    names = [
        name
        for name, one in found.items()
        if any(low <= line <= high for line in one["reached"].get(mutant.module, ()))
    ]
    return sorted(names, key=lambda name: found[name]["seconds"])


def run(made: list[Mutant], jobs: int) -> Results:
    results = Results(KEPT)
    checks, tests = baseline(results, jobs)
    bar = tqdm.tqdm(total=len(made), desc="mutants", mininterval=1)
    waiting, survived = [], 0
    for mutant in made:
        if mutant.key in results.known:
            bar.update()
            survived += not (results.known[mutant.key]["check"] or results.known[mutant.key]["test"])
        else:
            waiting.append((mutant, "check"))

    def judged(task):
        mutant, by = task
        if by == "check":
            names = [(name, checks[name]["module"]) for name in reaching(mutant, checks)]
            return names and judge.first_check((mutant.module, mutant.source, names))
        names = reaching(mutant, tests)
        return names and judge.first_test((mutant.module, mutant.source, names))

    def seconds(task):
        found = checks if task[1] == "check" else tests
        return 30 + 5 * sum(found[name]["seconds"] for name in reaching(task[0], found))

    for (mutant, by), noticed in children.each(waiting, judged, seconds, jobs):
        noticed = "its process was killed" if noticed is None else noticed or ""
        if by == "check" and not noticed:
            waiting.insert(0, (mutant, "test"))
            continue
        results.judged(mutant.key, **{"check": "", "test": "", by: noticed})
        survived += not noticed
        bar.set_postfix_str(f"{survived} survived, {mutant.module}", refresh=False)
        bar.update()
    bar.close()
    return results


def report(made: list[Mutant], results: Results) -> int:
    """Print the table, the survivors and the sum. Returns 1 where too few were caught or the list is not right."""
    reasons, rows, survivors, late = equivalent(), {}, [], []
    for mutant in made:
        known = results.known[mutant.key]
        row = rows.setdefault(mutant.module, [0, 0, 0, 0])
        caught = bool(known["check"] or known["test"])
        for column, counts in enumerate((True, known["check"], caught, not caught)):
            row[column] += bool(counts)
        if not caught:
            survivors.append(mutant)
        elif mutant.key in reasons:
            late.append(f"{mutant.key}, by {known['check'] or known['test']}")
    named = [mutant for mutant in survivors if mutant.key in reasons]
    width = max(map(len, rows))
    head = ("made", "caught by the checks", "by checks or tests", "survived")
    print(f"{'module':{width}}  " + "  ".join(head))
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    for module, (made_, check, caught, left) in [*rows.items(), ("all", total)]:
        cells = (f"{made_}", f"{check} ({check / made_:.1%})", f"{caught} ({caught / made_:.1%})", f"{left}")
        print(
            f"{module:{width}}  " + "  ".join(f"{cell:>{len(title)}}" for cell, title in zip(cells, head, strict=True))
        )
    for title, listed in (("Survived", [m for m in survivors if m not in named]), ("Equivalent", named)):
        if listed:
            print(f"\n{title}:")
        for mutant in listed:
            path = children.path_of(mutant.module).relative_to(children.ROOT)
            print(f"{path}:{mutant.line} ({mutant.operator})\n    {mutant.before}\n -> {mutant.after}")
            if mutant in named:
                print(f"    {reasons[mutant.key]}")
    for text in late:
        print(f"\nListed as equivalent, but caught: {text}")
    share = total[2] / total[0]
    left = f"of the {total[3]} that survived, {len(named)} are equivalent"
    print(f"\n{total[2]} of {total[0]} mutants caught; {left}: {share:.1%}")
    return bool(late) or share < ENOUGH


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="as in diffusion.posterior; all unless some are named"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: the cores)")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - modules().keys():
        parser.error(f"expected modules among {', '.join(modules())}; got {', '.join(sorted(unknown))}")
    made = all_mutants(arguments.modules)
    if arguments.list:
        print("\n".join(f"{mutant.line:4} {mutant.operator:14} {mutant.key}" for mutant in made))
        return 0
    children.preload()
    tqdm.tqdm.monitor_interval = 0  # no thread beside the one that forks
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # of the children, too: those that are killed tidy nothing
        results = run(made, arguments.jobs)
    return report(made, results)


if __name__ == "__main__":
    sys.exit(main())
