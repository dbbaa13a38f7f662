"""Settings of a hedging run in words."""

from __future__ import annotations

from typing import Any

__all__ = ["settings_text"]


def settings_text(settings: dict[str, Any]) -> str:
    """The kind of a part and what it is set to, without what is off."""
    parts = []
    for key, value in settings.items():
        if key in ("kind", "feature_names", "n_instruments") or value is None or value is False or value == []:
            continue
        shown = settings_text(value) if isinstance(value, dict) else value
        if shown == "":  # a part without a kind of which all is off
            continue
        shown = "-".join(map(str, shown)) if isinstance(shown, list) else shown
        parts.append(key.replace("_", " ") if shown is True else f"{key.replace('_', ' ')} {shown}")
    kind = str(settings.get("kind", "")).replace("_", " ")
    return f"{kind} ({', '.join(parts)})".lstrip() if parts else kind
