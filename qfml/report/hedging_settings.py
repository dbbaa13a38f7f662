"""Settings of a hedging run in words."""

from __future__ import annotations

from typing import Any

__all__ = ["settings_text"]


def settings_text(settings: dict[str, Any]) -> str:
    """The kind of a part and what it is set to, without what is off; a section without a kind by its settings.

    >>> settings_text({"kind": "band", "hedge": ["call_delta"], "rules": {"lot": 0.1, "max_holding": None}})
    'band (hedge call_delta, rules lot 0.1)'
    """
    parts = []
    for key, value in settings.items():
        if key in ("kind", "feature_names", "n_instruments") or value is None or value is False or value == []:
            continue
        shown = settings_text(value) if isinstance(value, dict) else value
        shown = "-".join(map(str, shown)) if isinstance(shown, list) else shown
        if shown != "":
            parts.append(key.replace("_", " ") if shown is True else f"{key.replace('_', ' ')} {shown}")
    if "kind" not in settings:
        return ", ".join(parts)
    kind = str(settings["kind"]).replace("_", " ")
    return f"{kind} ({', '.join(parts)})" if parts else kind
