"""The report as Markdown and JSON, written anew after every section, so that a call cut short leaves what it had."""

import json
import time
from pathlib import Path


class Report:
    def __init__(self, out, about):
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.about, self.sections = about, {}

    def add(self, name, verdict, seconds, text, data):
        """verdict: ok, FAILED, partial, or 'skipped: why'; text: Markdown below the section's heading."""
        self.sections[name] = {"verdict": verdict, "seconds": round(seconds, 1), "text": text, "data": data}
        self.write()

    def write(self):
        about = self.about
        lines = [f"# gpu-check of {about['commit'][:12]}", ""]
        lines += table(["", ""], [[key, value] for key, value in about.items() if not isinstance(value, (dict, list))])
        lines += ["", *table(["section", "verdict", "seconds"], [[n, s["verdict"], s["seconds"]] for n, s in self.sections.items()])]
        for name, section in self.sections.items():
            lines += ["", f"## {name}: {section['verdict']}", "", section["text"].strip()]
        (self.out / "report.md").write_text("\n".join(lines) + "\n")
        data = {
            "about": about,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sections": {n: {k: v for k, v in s.items() if k != "text"} for n, s in self.sections.items()},
        }
        (self.out / "report.json").write_text(json.dumps(data, indent=1) + "\n")


def table(head, rows):
    clean = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")  # noqa: E731
    return ["| " + " | ".join(map(clean, row)) + " |" for row in [head, ["---"] * len(head), *rows]]
