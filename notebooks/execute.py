"""Executes the notebooks: each NAME.py here becomes NAME.ipynb with its outputs, which reads well where it is hosted.

    python notebooks/execute.py                          on the committed results/quickstart
    python notebooks/execute.py --from=runs/quickstart   first saves that study as results/quickstart, then the same

The second is what to type after a new quick-start run that is to be committed. Outputs depend on the committed results
alone (no time, no random id, no key of W&B), so executing twice leaves no difference.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from experiments.commandline import main
from hybrid.validation import ConfigError

HERE = Path(__file__).resolve().parent
SAVED = HERE.parent / "results" / "quickstart"
HEADER = "# ---\n# jupyter:"
FLAG = "--from="
TIMEOUT = 120
"""Seconds that a cell may take."""
UNSET = ("WANDB_API_KEY", "WANDB_PROJECT", "MPLBACKEND")
"""Variables of the caller that would change the outputs."""


def command(argv: list[str]) -> int:
    if any(word in ("--help", "-h") for word in argv):
        print((__doc__ or "").strip())
        return 0
    for word in argv:
        if not word.startswith(FLAG) or word == FLAG or len(argv) > 1:
            raise ConfigError(word, f"is not allowed; must be nothing or {FLAG}FOLDER")
        from experiments.results import load

        print(f"saved: {load(word.removeprefix(FLAG)).save(SAVED)}")
    for source in sources(HERE):
        print(f"executed: {execute(source, SAVED)}")
    return 0


def sources(folder: Path) -> list[Path]:
    """The notebooks of a folder: the Python files that begin with jupytext's header."""
    return [path for path in sorted(folder.glob("*.py")) if path.read_text(encoding="utf-8").startswith(HEADER)]


def execute(source: Path, study: Path) -> Path:
    """Runs `source` on `study` and writes its .ipynb beside it; where a cell fails, raises and writes nothing."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    before = {name: os.environ.pop(name) for name in UNSET if name in os.environ}
    os.environ["HYBRID_STUDY"] = str(study)
    try:
        NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(source.parent)}}).execute()
    finally:
        del os.environ["HYBRID_STUDY"]
        os.environ.update(before)
    target = source.with_suffix(".ipynb")
    nbformat.write(_settled(notebook), target)
    return target


def _settled(notebook: Any) -> Any:
    """The same notebook without what differs from one execution to the next."""
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)
    return notebook


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main(command)
