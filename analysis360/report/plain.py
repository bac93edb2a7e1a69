"""Formulas of docstrings as plain text, for captions."""

from __future__ import annotations

import re

__all__ = ["plain"]

_SIGNS = {
    r"\sum": "Σ ", r"\beta": "β", r"\rho": "ρ", r"\epsilon": "ε", r"\theta": "θ", r"\delta": "δ",
    r"\sigma": "σ", r"\eta": "η", r"\Delta": "Δ", r"\alpha": "α", r"\|": "‖", r"\cdot": "·",
    r"\max": "max ", r"\min": "min ", r"\log": "log ", r"\,": "", r"\le": "≤", r"\ge": "≥",
    r"\times": "×", r"\infty": "∞", r"\prod": "∏", r"\exp": "exp ", r"\ln": "ln ",
    r"\cos": "cos", r"\langle": "⟨", r"\rangle": "⟩", r"\lambda": "λ", r"\gamma": "γ",
    r"\Gamma": "Γ", r"\Pi": "Π", r"\Sigma": "Σ",
}  # fmt: skip
_SHAPES = (
    (r"\\hat\{(\w)\}", "\\1\u0302"),
    (r"\\hat\s*(\w)", "\\1\u0302"),
    (r"\\overline\{([^{}]*)\}", r"mean(\1)"),
    (r"\\overline\s*(\w)", r"mean(\1)"),
    (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\frac(\w)(\w)", r"\1/\2 "),
    (r"\\sqrt\{([^{}]*)\}", r"√(\1)"),
    (r"\\sqrt\s*(\w)", r"√\1"),
    (r"\\(?:mathrm|text|operatorname)\{([^{}]*)\}", r"\1"),
    (r"_\{([^{}]*)\}", r"_\1"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\^2(?!\d)", "²"),
)


def plain(text: str) -> str:
    r"""Write the reStructuredText of a docstring line without markup.

    Parameters
    ----------
    text : str
        May hold ``:math:`` roles, and names in single or double backticks.

    Returns
    -------
    str

    Examples
    --------
    >>> plain(r"Root mean square, :math:`\|W\|_F/\sqrt n`, of `rms` steps.")
    'Root mean square, ‖W‖_F/√n, of rms steps.'
    """
    text = re.sub(r":math:`([^`]*)`", lambda found: _formula(found[1]), text)
    text = re.sub(r":\w+:`([^`]*)`", r"\1", text)
    return re.sub(r"`{1,2}([^`]*)`{1,2}", r"\1", text)


def _formula(tex: str) -> str:
    """Signs, then shapes with the innermost braces first, until nothing changes."""
    for sign, written in _SIGNS.items():
        end = r"(?![a-zA-Z])" if sign[1:].isalpha() else ""
        tex = re.sub(re.escape(sign) + end, written, tex)
    before = ""
    while before != tex:
        before = tex
        for pattern, replacement in _SHAPES:
            tex = re.sub(pattern, replacement, tex)
    tex = tex.replace("{", "").replace("}", "").replace("Σ _", "Σ_")
    return tex.replace("  ", " ").strip()
