from hypothesis import is_hypothesis_test, settings

from tests.properties import test_attend, test_half, test_layers


def test_the_tiers_try_enough():
    """At least: each property counted once, although the layers' run in several runtimes and configurations each."""
    modules = (test_attend, test_half, test_layers)
    properties = sum(is_hypothesis_test(item) for module in modules for item in vars(module).values())
    assert properties * settings.get_profile("fast").max_examples >= 200
    assert properties * settings.get_profile("slow").max_examples >= 2000
