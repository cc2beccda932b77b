"""Every example of the LaCT README runs and prints what it says."""

from __future__ import annotations

import doctest
from pathlib import Path

import tttabpfn.lact


def test_examples_of_the_readme():
    path = Path(tttabpfn.lact.__file__).with_name("README.md")
    found = doctest.testfile(str(path), module_relative=False, optionflags=doctest.REPORT_NDIFF)
    assert found.attempted > 20
    assert found.failed == 0
