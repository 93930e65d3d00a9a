"""``osrl-unlearn report RUN_DIR... --out DIR``: one HTML file, and the same as Markdown, for people who decide."""
import os

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate import page
from osrl_unlearn.evaluate.runs import find_runs
from osrl_unlearn.files import atomic_path, write_text


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+",
                        help="RUN_DIR/unlearned/METHOD, a run directory (then all of its methods), or an audited one")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for report.html, report.md and figures/")


def main(args):
    """Write the summary and print the verdicts."""
    for name in ("report.json", "config.yaml"):
        if os.path.exists(os.path.join(args.out, name)):
            raise ConfigError("--out {} is the folder of a run: give another one".format(args.out))
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise ConfigError("--out {} is a file: give a folder".format(args.out))
    page.environment()
    runs = find_runs(args.run_dirs)
    write_page(args.out, page.content(runs))
    for run in runs:
        for block in page.verdicts(run):
            print("{}: {}".format(run.label, block["text"]))
    print("\nReport: {}".format(os.path.join(os.path.abspath(args.out), "report.html")))
    return 0


def write_page(folder, blocks):
    """Write report.html, report.md and the figures that it shows into ``folder``, each atomically.

    Figures of an earlier report in the same folder are removed.
    """
    html, text = page.as_html(blocks), page.as_markdown(blocks)
    figures = {figure["file"]: figure["png"] for block in blocks for figure in block.get("figures", ())}
    inside = os.path.join(folder, "figures")
    for name, png in figures.items():
        with atomic_path(os.path.join(inside, name)) as temporary, open(temporary, "wb") as file:
            file.write(png)
    write_text(os.path.join(folder, "report.md"), text)
    write_text(os.path.join(folder, "report.html"), html)
    for name in os.listdir(inside) if os.path.isdir(inside) else ():
        if name.endswith(".png") and name not in figures:
            os.unlink(os.path.join(inside, name))
