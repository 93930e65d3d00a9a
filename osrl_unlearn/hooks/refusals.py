"""Scripts that are refused because nothing of what they train can be unlearned."""
import ast

from osrl_unlearn.errors import IncompatibleAgent
from osrl_unlearn.hooks.seams import TRAINERS


def without_trainer(model):
    """The IncompatibleAgent for one of OSRL's models that a script updates itself."""
    return IncompatibleAgent(type(model).__name__, [
        "the script updates it itself, without one of OSRL's trainers: construct one, which may be a subclass, and "
        "call its train_one_step()"])


def untrained():
    """The IncompatibleAgent for a script that updates, or saves, something before it has one of OSRL's trainers."""
    return IncompatibleAgent("what the script trains", [
        "it has none of OSRL's trainers ({}): construct one, which may be a subclass, before the first update".format(
            ", ".join(TRAINERS))])


def refuse_unsupported(source, path):
    """Raise IncompatibleAgent if a script imports trainers of OSRL, but none that can be unlearned.

    Looking at the imports finds this before the script has written anything.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return  # running the script will say it better
    trainers = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("osrl.algorithms")
                for alias in node.names if alias.name.endswith("Trainer")}
    if trainers and trainers.isdisjoint(TRAINERS):
        raise IncompatibleAgent("the agent of {}".format(path), [
            "it is trained by {}; --unlearn works with {}".format(
                ", ".join(sorted(trainers)), ", ".join(TRAINERS))])
