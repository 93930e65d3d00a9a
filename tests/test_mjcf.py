"""Old MuJoCo models, translated for a newer MuJoCo, are the same models."""
import glob
import os
import xml.etree.ElementTree as ElementTree

import pytest

from osrl_unlearn.hooks import mjcf

MODEL = """<mujoco><compiler coordinate="global"/><option collision="predefined"/><worldbody>
<geom name="floor" type="plane" size="1 1 1" pos="0 0 5"/>
<body name="a" pos="1 0 2"><joint name="j" axis="0 1 0" pos="1 0 2.5"/><geom fromto="1 0 2 1 0 3" size="0.1"/>
<body name="b" pos="1 1 2"><joint axis="0 1 0"/><geom pos="1 1 2.25" size="0.1"/></body></body></worldbody></mujoco>"""


def test_positions_become_those_relative_to_the_parent():
    root = ElementTree.fromstring(mjcf.modernise(MODEL))
    body = {b.get("name"): b for b in root.iter("body")}
    numbers = lambda element, name: [float(x) for x in element.get(name).split()]  # noqa: E731
    assert root.find("worldbody/geom").get("pos") == "0 0 5"
    assert numbers(body["a"], "pos") == [1, 0, 2] and numbers(body["b"], "pos") == [0, 1, 0]
    assert numbers(body["a"].find("joint"), "pos") == [0, 0, 0.5]
    assert numbers(body["a"].find("geom"), "fromto") == [0, 0, 0, 0, 0, 1]
    assert numbers(body["b"].find("joint"), "pos") == [-1, -1, -2]
    assert numbers(body["b"].find("geom"), "pos") == [0, 0, 0.25]
    assert root.find("option/flag").get("contact") == "disable" and "collision" not in root.find("option").attrib


def test_a_rotated_body_is_refused():
    with pytest.raises(ValueError, match="'a' is rotated"):
        mjcf.modernise(MODEL.replace('name="a"', 'name="a" euler="0 90 0"'))


@pytest.mark.parametrize("version, needed", [("2.3.0", False), ("2.3.3", False), ("2.3.4", True), ("3.0.0", True)])
def test_only_newer_versions_need_it(version, needed):
    assert mjcf.is_needed(version) == needed


def assets():
    try:
        import gymnasium
    except ImportError:
        return []
    folder = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets")
    return [path for name in ("hopper", "walker2d", "swimmer") for path in glob.glob(
        os.path.join(folder, name + ".xml"))]


@pytest.mark.parametrize("path", assets(), ids=[os.path.basename(path) for path in assets()])
def test_gymnasiums_models_compile_to_the_same_numbers(path):
    mujoco = pytest.importorskip("mujoco")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    new = mujoco.MjModel.from_xml_string(mjcf.modernise(text))
    assert new.nq > 0
    if mjcf.is_needed(mujoco.__version__):
        with pytest.raises(ValueError):
            mujoco.MjModel.from_xml_string(text)
        return
    import numpy as np
    old = mujoco.MjModel.from_xml_string(text)
    for name in ("body_pos", "body_quat", "body_mass", "body_inertia", "body_ipos", "geom_pos", "geom_quat",
                 "geom_size", "jnt_pos", "jnt_axis", "qpos0", "dof_armature"):
        assert np.allclose(getattr(old, name), getattr(new, name), atol=1e-12), name
