"""Writes docs/matrix.md from what `isoformer verify PACKAGE --runtime all --json` printed, a file a package.

python docs/write_matrix.py FILE.json...      # make matrix
"""

import json
import sys
from pathlib import Path

from isoformer.runtime import matrix

TARGET = Path(__file__).resolve().parent / "matrix.md"
HEAD = """# The same in every runtime

`make matrix` exports the packages, runs `isoformer verify PACKAGE --runtime all --json` on each and writes this page;
a machine with Node.js, Chromium and a C compiler has every line. The largest share is that of the largest error in what
is allowed: over 1 fails. `ort` of the installed release replays the grid and fresh cases as well, the others the golden
vectors that lie in the package. The bound of 8 bits is twice the error that was measured at export: it finds a runtime
that computes something else, not one weight that is off by a little.
[What a runner is](decisions/runners.md), and which releases pass.
"""


def section(path: Path) -> str:
    """A heading and the table of one file."""
    summary = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    verdict = f"{summary['cases']} cases, {summary['values']:,} values compared, {len(summary['failures'])} failures."
    return f"## {Path(summary['package']).name}\n\n{verdict}\n\n{matrix.markdown(summary['matrix'])}\n"


def main() -> None:
    files = [Path(word) for word in sys.argv[1:]]
    if not files:
        sys.exit("usage: python docs/write_matrix.py FILE.json...")
    beside = TARGET.with_name(f".{TARGET.name}.partial")
    beside.write_text("\n".join([HEAD, *map(section, files)]), encoding="utf-8")
    beside.replace(TARGET)


if __name__ == "__main__":
    main()
