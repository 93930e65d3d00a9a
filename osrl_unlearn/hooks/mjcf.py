"""Let a newer MuJoCo load the Hopper, Walker2d and Swimmer models of gymnasium 0.28.

MuJoCo 2.3.4 dropped coordinate="global" and 3.0 dropped option collision="predefined"; the models say the same without.
"""
import os
import tempfile
import xml.etree.ElementTree as ElementTree

TARGET = "gymnasium.envs.mujoco.mujoco_env:MujocoEnv._initialize_simulation"


def is_needed(version):
    """Whether a MuJoCo of this ``version`` ("3.0.0") refuses the old models."""
    return tuple(int(part) for part in version.split(".")[:3]) >= (2, 3, 4)


def modernise(text):
    """The same model in terms that both old and new MuJoCo accept.

    Raises ValueError for what cannot be translated: global coordinates under a rotated body.
    """
    root = ElementTree.fromstring(text)
    for compiler in root.iter("compiler"):
        if compiler.attrib.pop("coordinate", "local") == "global":
            for body in root.find("worldbody").findall("body"):
                _make_local(body, (0.0, 0.0, 0.0))
    for option in root.iter("option"):
        if option.attrib.pop("collision", "all") == "predefined" and root.find("contact/pair") is None:
            # Only the pairs of <contact> could collide, and there are none.
            flag = option.find("flag")
            flag = ElementTree.SubElement(option, "flag") if flag is None else flag
            flag.set("contact", "disable")
    return ElementTree.tostring(root, encoding="unicode")


def _make_local(body, parent):
    if {"quat", "axisangle", "euler", "xyaxes", "zaxis"} & set(body.attrib):
        raise ValueError("the body '{}' is rotated".format(body.get("name")))
    own = _numbers(body.get("pos", "0 0 0"))
    body.set("pos", _text(a - b for a, b in zip(own, parent)))
    for child in body:
        if child.tag == "body":
            _make_local(child, own)
        elif "fromto" in child.attrib:
            child.set("fromto", _text(a - b for a, b in zip(_numbers(child.get("fromto")), own * 2)))
        elif child.tag in ("joint", "geom", "site", "camera", "light", "inertial"):
            child.set("pos", _text(a - b for a, b in zip(_numbers(child.get("pos", "0 0 0")), own)))


def _numbers(text):
    return tuple(float(part) for part in text.split())


def _text(numbers):
    return " ".join(repr(number) for number in numbers)


def initialize(original, env):
    """Goes around ``MujocoEnv._initialize_simulation``: load a modernised copy of the model's file."""
    path = env.fullpath
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if 'coordinate="global"' not in text and 'collision="predefined"' not in text:
        return original(env)
    with tempfile.TemporaryDirectory() as folder:
        env.fullpath = os.path.join(folder, os.path.basename(path))
        try:
            with open(env.fullpath, "w", encoding="utf-8") as file:
                file.write(modernise(text))
            return original(env)
        finally:
            env.fullpath = path
