"""What OSRL's loggers get beside their own columns: normalised scores, and the unlearning after the training."""
import os

from osrl_unlearn.evaluate.rollouts import normalize
from osrl_unlearn.files import write_text


def normalized(tab, values, constants):
    """{tab: {name: value}} to log after an OSRL script has logged ``values`` under ``tab``; mostly nothing.

    Evaluations of OSRL's scripts are "eval": Reward, Cost; in that of CDT "ret" and "cost", one value for each target.
    DSRL's ``constants`` (of :func:`~osrl_unlearn.evaluate.rollouts.normalization`) are logged beside the scores.
    """
    if tab == "eval" and {"Reward", "Cost"} <= set(values):
        reward, cost = normalize(values["Reward"], values["Cost"], constants)
        found = {tab: {"NormalizedReward": reward, "NormalizedCost": cost}}
    elif tab in ("ret", "cost"):
        found = {"normalized_" + tab: {name: normalize(value, value, constants)[tab == "cost"]
                                       for name, value in values.items()}}
    else:
        return {}
    return {name: {key: value for key, value in more.items() if value is not None}
            for name, more in dict(found, normalization=constants).items()}


def evaluation(entry, constants):
    """{tab: {name: value}} of a report's entry for one agent, as OSRL's scripts would log it; {} without one."""
    if entry is None:
        return {}
    means = {name.capitalize(): entry[name]["mean"] for name in ("reward", "cost", "length")}
    more = normalized("eval", means, constants)
    return dict(more, eval=dict(means, **more["eval"]))


def write(logger, step, tabs):
    """Log at ``step`` to wandb or TensorBoard, but not to progress.txt: its columns are fixed by the first line."""
    if not tabs:
        return
    logger.reset_data()
    for tab, values in tabs.items():
        logger.store(tab=tab, **values)
    logger.write_without_reset(step)
    logger.reset_data()


def check(entry):
    """{tab: {name: value}} of an entry of an unlearning trace."""
    return {"unlearn": {key: value for key, value in entry.items() if key != "step"}}


def write_progress(folder, run_dir, rows):
    """Write ``folder``/progress.txt: the run's own, if it has one, continued by ``rows``.

    A file of its own, because OSRL's tells of the agent that lies beside it, and cannot take new columns.

    Args:
        rows: {step: list of {tab: {name: value}}}, steps counted on from the training's.
    """
    path = os.path.join(run_dir, "progress.txt")
    header, lines = ["Steps"], []
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            header, *lines = [line.rstrip("\n").split("\t") for line in file] or [header]
    new = [dict({"Steps": step, "update/env_step": step}, **{"{}/{}".format(tab, name): value
                for tabs in found for tab, values in tabs.items() for name, value in values.items()})
           for step, found in sorted(rows.items())]
    columns = list(dict.fromkeys(header + [name for row in new for name in row]))
    lines = [line + ["nan"] * (len(columns) - len(line)) for line in lines]
    lines += [[str(row.get(name, "nan")) for name in columns] for row in new]
    write_text(os.path.join(folder, "progress.txt"), "".join("\t".join(line) + "\n" for line in [columns] + lines))
