"""README.md from index.ipynb, prose, code and stored outputs: python docs/readme.py [--check]"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from index.ipynb by `make readme`: edit that, not this. -->"
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|include:\s*false)", re.M)


def shown(output):
    "One output as Markdown: prose stays prose, text becomes an indented block, pictures are left to the notebook."
    data = output.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", "")))
    if "text/html" in data or "image/png" in data or not text.strip():
        return ""
    return "\n".join(("    " + line).rstrip() for line in text.rstrip().splitlines())


def readme(nb):
    parts = [NOTE]
    for cell in nb["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source and not HIDDEN.search(source):
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            echo = not re.search(r"^#\|\s*echo:\s*false", source, re.M)
            parts += [f"```python\n{code}\n```"] if code and echo else []
            parts += map(shown, cell["outputs"])
    return "\n\n".join(p for p in parts if p) + "\n"


if __name__ == "__main__":
    text, dest = readme(json.loads((ROOT / "index.ipynb").read_text(encoding="utf-8"))), ROOT / "README.md"
    if "--check" not in sys.argv:
        dest.write_text(text, encoding="utf-8")
    elif not dest.exists() or dest.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what index.ipynb gives: run 'make readme' and commit it")
