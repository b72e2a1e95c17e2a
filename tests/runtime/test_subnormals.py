from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isoformer.runtime import subnormals
from isoformer.runtime.subnormals import flushed

SMALL = np.full(1000, 1e-39, np.float32)
known = pytest.mark.skipif(subnormals._libm is None, reason="the mode is known on Linux on x86-64 alone")


def halved() -> float:
    return float((SMALL * np.float32(0.5)).max())


@known
def test_subnormals_are_zero_within_and_themselves_again_behind():
    before = halved()
    assert before > 0
    with flushed():
        assert halved() == 0
        with flushed():
            assert halved() == 0
        assert halved() == 0
    assert halved() == before


@known
def test_threads_have_the_mode_each_for_itself():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(halved).result() > 0  # one that begins within would inherit the mode
        with flushed():
            assert pool.submit(halved).result() > 0
            assert halved() == 0


@known
def test_the_mode_is_given_back_after_an_error():
    with pytest.raises(ZeroDivisionError), flushed():
        _ = 1 / 0
    assert halved() > 0


def test_where_the_mode_is_not_known_nothing_happens(monkeypatch):
    monkeypatch.setattr(subnormals, "_libm", None)
    before = halved()
    with flushed():
        assert halved() == before


def test_a_session_leaves_the_callers_thread_as_it_was(tiny_package):
    from isoformer.runtime import Session
    from isoformer.runtime.cases import grid

    session = Session(tiny_package)
    case = next(iter(grid(session.signature)))
    session.run(case.inputs(session.signature))
    assert halved() > 0
