"""A reader's own copy of the book, in reading/: run and change it as you like, git sees nothing of it.

`make lab` calls this. A chapter that you have not touched follows the book; one that you have changed stays as it is.
"""

import hashlib
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def renew(book: Path, copy: Path) -> list[str]:
    """Copies what is missing or untouched, and returns the names of changed chapters of which the book has a newer one.

    `copy`/.copied.json remembers what was copied: {name: checksum}.
    """
    record = copy / ".copied.json"
    copied = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    behind = []
    for source in sorted(book.rglob("*.ipynb")):
        name, own = source.relative_to(book).as_posix(), copy / source.relative_to(book)
        if ".ipynb_checkpoints" in own.parts or (copied.get(name) == checksum(source) and own.exists()):
            continue
        if own.exists() and copied.get(name) != checksum(own):
            behind.append(name)
            continue
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, own)
        copied[name] = checksum(own)
    copy.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(copied, indent=1) + "\n", encoding="utf-8")
    return behind


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    for name in renew(ROOT / "chapters", ROOT / "reading"):
        print(
            f"reading/{name} has changes of yours, and the book has a newer one: to get it, rename yours and call again"
        )
