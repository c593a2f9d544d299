"""What the values of tile programs are called, with their equations: the words that printed programs are read by.

Layer l of the memory gives z_l(x) = W_l x_l(x) for what it sees, x_1(x) = x and x_(l+1)(x) = sigma(z_l(x)); L is the
loss, J the rule's objective, e_l = dJ/dz_l(k) an error row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcgen.ir.program import Label


@dataclass(frozen=True)
class Reader:
    """Who reads a memory: how the names of what it reads begin, the argument in their equations, and the read-out."""

    prefix: str
    argument: str
    value: Label

    def pre(self, layer: int) -> Label:
        """A layer's results."""
        return Label(f"{self.prefix}pre_{layer}", f"{self._z(layer)} = W_{layer} {self._x(layer)}")

    def hidden(self, layer: int, function: str) -> Label:
        """What the layer after sees of them."""
        return Label(f"{self.prefix}hidden_{layer}", f"{self._x(layer + 1)} = {function}({self._z(layer)})")

    def norm(self, layer: int, size: int) -> Mapping[str, Label]:
        """The parts of the norm of a layer's results."""
        z = self._z(layer)
        equations = {
            "sum": f"sum({z})",
            "centred": f"{z} - mean({z})",
            "squares": f"{size} var({z})",
            "normed": f"LN({z})",
        }
        names = {"sum": f"pre_{layer}_sum"}
        return {part: Label(self.prefix + names.get(part, part), equation) for part, equation in equations.items()}

    def _z(self, layer: int) -> str:
        return f"z_{layer}({self.argument})"

    def _x(self, layer: int) -> str:
        return f"x_{layer}({self.argument})" if layer > 1 else self.argument.partition(",")[0]


KEYS = Reader("", "k", Label("prediction", "p = M(k)"))
QUERIES = Reader("q_", "q", Label("o", "o_t = M_t(q_t)"))
MATRIX_QUERIES = Reader("", "q", Label("o", "o_t = M_tᵀ q_t, M_t = R_t M + sum over j <= t of C_tj k_j v_jᵀ"))
SEGMENTS = Reader("cached_", "q, n", Label("o_cached", "o_n = M_n(q)"))
CHOSEN = Reader("chosen_", "q, n", Label("o_chosen", "o_n = M_n(q)"))
SOUP = Reader("soup_", "q, w", Label("y", "y_t = M(q_t), every layer the average of all memories'"))


def errors(layers: int, function: str, normed: bool) -> Callable[[Label], Label]:
    """What the derivatives of the objective by the values of a read of the keys are called."""
    last = Label(f"error_{layers}", f"e_{layers} = dJ/dz_{layers}(k)" + (", e through LN" if normed else ""))
    known = {KEYS.value: Label("error", "e = dJ/dp, p = M(k)"), KEYS.pre(layers): last}
    for n in range(1, layers):
        back = f"W_{n + 1}ᵀ e_{n + 1}"
        known[KEYS.pre(n)] = Label(f"error_{n}", f"e_{n} = {function}'(z_{n}(k)) {back}")
        known[KEYS.hidden(n, function)] = Label(f"error_hidden_{n}", f"dJ/dx_{n + 1}(k) = {back}")
    return lambda label: known.get(label) or Label(f"error_{label.name}", part=label.part)


def derivative(label: Label) -> Label:
    """d_x, the derivative of the loss by x."""
    return Label(f"d_{label.name}", f"dL/d{label.symbol}" if label.symbol else "", label.part)


def root(label: Label) -> Label:
    """The root that a norm divides by, of its sum of squares."""
    return Label(label.name.replace("squares", "norm_scale"), f"sqrt({label.equation.partition(' ')[2]} + 1e-5)")


def through_soup(label: Label) -> Label:
    """The part of d_x that goes through the read of a soup, where x is read online too."""
    found = derivative(label)
    is_own = label.name.startswith(SOUP.prefix) or found.name.endswith("_soup")
    return found if is_own else Label(f"{found.name}_soup", part=label.part)


def following(slot: str, layer: int, deep: bool) -> Label:
    """A slot, or a layer's part of it, after a chunk."""
    written = f"x_{layer}(k_j) e_{layer},jᵀ" if deep else "k_j v_jᵀ"
    return Label(f"{slot}_next", f"{slot}' = R {slot} + sum over j of C_j {written}")


def run(gate: str, row: str | None, column: str | None, exclusive: bool) -> Label:
    """Products of a gate over runs of tokens."""
    axes = f"{row or ''}{column or ''}"
    bounds = [*([column, "<"] if column else []), "i", *(["<" if exclusive else "<=", row] if row else [])]
    over = " ".join(bounds) if len(bounds) > 1 else "the chunk"
    words = [gate, "before" if exclusive else "run", axes or "all"]
    return Label("_".join(words), f"product of {gate}_i over {over}")


def coefficient(slot: str, of: str, row: str | None, exclusive: bool, write: bool) -> Label:
    """What a slot has, after a token (before it, where exclusive) or at the chunk's end, of another slot at the chunk's
    start (R) or of an earlier token's write (C)."""
    axes = (row or "") + ("j" if write else "")
    words = [f"C_{slot}{of}" if write else f"R_{slot}_{of}", "before" if exclusive else "", axes]
    return Label("_".join(filter(None, words)), f"d{slot}_{_end(row, exclusive)}/d{f'G{of}_j' if write else f'{of}_0'}")


def passing(slot: str, source: str, row: str | None, exclusive: bool) -> Label:
    """What a slot has, after a token or at the chunk's end, of what another was before token s."""
    words = [f"{slot}_of_{source}", "before" if exclusive else "", f"{row or ''}s"]
    return Label("_".join(filter(None, words)), f"d{slot}_{_end(row, exclusive)}/d{source}_s-1")


def _end(row: str | None, exclusive: bool) -> str:
    return f"{row}-1" if exclusive else row or "end"
