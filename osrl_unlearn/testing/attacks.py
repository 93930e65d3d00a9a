"""What every attack has to keep."""
import copy
import dataclasses

import numpy as np

from osrl_unlearn.attacks.base import KINDS
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import REQUIRED, poison
from osrl_unlearn.data.trajectories import UNITS, TrajectoryIndex
from osrl_unlearn.generators import all_states
from osrl_unlearn.testing.contracts import assert_same
from osrl_unlearn.testing.toys import toy_data


class AttackContract:
    """Override :meth:`make`; :meth:`data` if the attack needs other data, and :meth:`eligible` if it is choosy."""

    def make(self):
        """The attack under test."""
        raise NotImplementedError("override make() with the attack under test")

    def data(self):
        """Data that the attack works on."""
        return toy_data()

    def eligible(self, units):
        """Which of ``units`` the attack can use at all; it has to use as many of them as the rate says. Bool [units]"""
        return np.ones(len(units.costs), bool)

    def each_unit(self, data, rate=0.4):
        """(unit, attack, result) for every unit that the attack works on; it learns from ``data`` once."""
        attack = self.make()
        for unit in sorted(attack.units):
            yield unit, attack, poison(data, attack, rate=rate, unit=unit, state=attack.state())

    def test_it_declares_what_it_is_what_it_touches_and_what_its_attacker_can_do(self):
        attack = self.make()
        assert attack.kind in KINDS
        assert isinstance(attack.threat, str) and attack.threat.strip()
        assert set(attack.columns) <= set(REQUIRED) and attack.units and set(attack.units) <= set(UNITS)

    def test_the_given_data_stay_as_they_are(self):
        data = self.data()
        before = copy.deepcopy(data)
        assert list(self.each_unit(data, 0.5))
        for name in before:
            assert np.array_equal(data[name], before[name]), name

    def test_exactly_the_rows_of_the_manifest_change_and_only_declared_columns(self):
        data = self.data()
        for _, attack, result in self.each_unit(data):
            if attack.removes_rows:
                return
            manifest, rows = result.manifest, result.manifest.row_numbers(result.data, result.ids)
            assert len(rows) == manifest.rows > 0
            differ = np.zeros(len(result.data["rewards"]), bool)
            differ[len(data["rewards"]):] = True
            for name in REQUIRED:
                old, new = data[name], result.data[name]
                changed = (old != new[:len(old)]).reshape(len(old), -1).any(1)
                assert name in attack.columns or not changed.any(), name
                differ[:len(old)] |= changed
                assert new.dtype == old.dtype, name
            assert not differ[np.setdiff1d(np.arange(len(differ)), rows)].any()
            # A row may have had its new values before, and exchanged labels may meet their equals; a unit seldom.
            touched = [differ[dataclasses.replace(manifest, spans=[span]).row_numbers(result.data, result.ids)].any()
                       for span in manifest.spans]
            assert np.mean(touched) > 0.9

    def test_an_attack_that_removes_rows_leaves_the_others_and_records_what_is_gone(self):
        data = self.data()
        for _, attack, result in self.each_unit(data):
            if not attack.removes_rows:
                assert result.manifest.removed is None
                continue
            gone = dataclasses.replace(result.manifest, spans=result.manifest.removed).row_numbers(data)
            assert result.manifest.rows == 0 and 0 < len(gone) < len(data["rewards"])
            for name in REQUIRED:
                assert np.array_equal(result.data[name], np.delete(data[name], gone, 0)), name
            assert np.array_equal(result.ids, np.delete(TrajectoryIndex(data).row_ids(), gone))

    def test_as_many_units_are_touched_as_the_rate_says(self):
        data = self.data()
        index = TrajectoryIndex(data)
        for rate in (0.1, 0.5, 1.0 if not self.make().removes_rows else 0.9):
            for unit, attack, result in self.each_unit(data, rate):
                units = index.units(unit, attack.options.segment_length)
                eligible = self.eligible(units)
                count = min(int(round(rate * len(units.costs))), int(eligible.sum()))
                spans = result.manifest.removed if attack.removes_rows else result.manifest.spans
                lengths = np.sort(units.lengths[eligible].astype(int))
                rows = sum(b - a for _, a, b in spans)
                assert lengths[:count].sum() <= rows <= lengths[len(lengths) - count:].sum(), (unit, rate)
                # The units of one trajectory become one recording that is added.
                assert len(spans) == count or attack.adds_rows and unit != "trajectory" and len(spans) < count

    def test_what_the_attack_learned_repeats_it_exactly(self):
        data, attack = self.data(), self.make()
        first = poison(data, attack, rate=0.4, seed=1)
        again = poison(data, self.make(), rate=0.4, seed=1, state=attack.state())
        assert first.manifest == again.manifest

    def test_untouched_columns_are_shared_not_copied(self):
        data = self.data()
        for _, attack, result in self.each_unit(data):
            if attack.adds_rows or attack.removes_rows:
                return
            for name in set(REQUIRED) - set(attack.columns):
                assert result.data[name] is data[name], name

    def test_the_seed_decides_and_global_generators_are_left_alone(self):
        data, attacks = self.data(), [self.make(), self.make()]
        before = all_states()
        for unit in sorted(attacks[0].units):
            one, two = (poison(data, attack, rate=0.4, unit=unit, seed=3, state=attack.state()) for attack in attacks)
            assert one.manifest.columns == two.manifest.columns and one.manifest.spans == two.manifest.spans, unit
        assert_same(all_states(), before)

    def test_rate_zero_changes_nothing(self):
        data = self.data()
        for unit in sorted(self.make().units):
            result = poison(data, self.make(), rate=0.0, unit=unit)
            assert result.manifest.rows == 0 and not result.manifest.removed
            for name in data:
                assert result.data[name] is data[name], name

    def test_the_manifest_survives_disk_and_verifies(self, tmp_path):
        data = self.data()
        for unit, _, result in self.each_unit(data):
            path = str(tmp_path / (unit + ".json"))
            result.manifest.save(path)
            loaded = ForgetManifest.load(path)
            assert loaded == result.manifest
            loaded.verify(result.data)
            loaded.verify(data, "before")
