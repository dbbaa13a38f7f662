"""The page of a hedge: settings in words."""

from qfml.report.hedging_settings import settings_text


def test_settings_are_words_without_what_is_off():
    policy = {"kind": "feed_forward", "hidden": [8, 8], "per_date": False, "scale": 0.0, "feature_names": ["a"]}
    assert settings_text(policy) == "feed forward (hidden 8-8, scale 0.0)"
    free = {"min_holding": None, "max_holding": None, "lot": None}
    assert settings_text(policy | {"rules": free}) == "feed forward (hidden 8-8, scale 0.0)"
    ruled = policy | {"rules": free | {"lot": 0.1}, "holding": {"kind": "band", "hedge": ["delta"]}}
    assert settings_text(ruled) == "feed forward (hidden 8-8, scale 0.0, rules lot 0.1, holding band (hedge delta))"
