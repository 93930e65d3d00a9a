"""Scripts that are refused because nothing of what they train can be unlearned."""
import ast

from osrl_unlearn.errors import IncompatibleAgent
from osrl_unlearn.hooks.seams import SEAMS


def without_trainer(model):
    return IncompatibleAgent(type(model).__name__, [
        "the script updates it itself, without one of OSRL's trainers: construct one, which may be a subclass, and "
        "call its train_one_step()"])


def refuse_unsupported(source, path):
    """Raise IncompatibleAgent if a script imports trainers of OSRL, but none that can be unlearned.

    Looking at the imports finds this before the script has written anything.
    """
    supported = {seam.target.partition(":")[2].split(".")[0] for seam in SEAMS}
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return  # running the script will say it better
    trainers = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("osrl.algorithms")
                for alias in node.names if alias.name.endswith("Trainer")}
    if trainers and not trainers & supported:
        raise IncompatibleAgent("the agent of {}".format(path), [
            "it is trained by {}; --unlearn works with {}".format(
                ", ".join(sorted(trainers)), ", ".join(sorted(t for t in supported if t.endswith("Trainer"))))])
