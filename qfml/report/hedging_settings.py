"""Settings of a hedging run in words."""

from __future__ import annotations

from typing import Any

__all__ = ["settings_text"]


def settings_text(settings: dict[str, Any]) -> str:
    """The kind of a part and what it is set to, without what is off."""
    parts = []
    for key, value in settings.items():
        shown = settings_text(value) if isinstance(value, dict) else value
        if key in ("kind", "feature_names", "n_instruments") or shown is None or shown is False or shown in ([], ""):
            continue
        shown = "-".join(map(str, shown)) if isinstance(shown, list) else shown
        parts.append(key.replace("_", " ") if shown is True else f"{key.replace('_', ' ')} {shown}")
    kind = str(settings.get("kind", "")).replace("_", " ")  # a section, such as trading rules, has none
    return f"{kind} ({', '.join(parts)})" if parts and kind else kind or ", ".join(parts)
