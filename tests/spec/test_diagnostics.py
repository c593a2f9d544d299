"""Every kind of error in a spec: where it points, what it says, what it suggests.

In each text, « and » mark the piece that the carets must lie under; they are taken out before the text is read.
"""

from __future__ import annotations

import pytest

from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import loads

MATRIX = "mcgen: 1\nname: a\nmemory: {kind: matrix}\n"
MLP = "mcgen: 1\nname: a\nmemory: {kind: mlp}\n"
LINEAR = MATRIX + "update: {rule: linear}\n"
TITANS = MLP + "update: {rule: titans}\n"


def steps(*lines: str, head: str = MATRIX, more: str = "") -> str:
    """A spec with these lines, unquoted, as a block list."""
    return head + "update:\n" + more + "  steps:\n" + "".join(f"    - {line}\n" for line in lines)


def objective(text: str) -> str:
    return steps("M = M - eta*grad", more=f"  objective: {text}\n")


def gates(text: str) -> str:
    return MATRIX + f"update: {{rule: decay, gates: {{{text}}}}}\n"


def unmarked(text: str) -> tuple[str, tuple[int, int, int]]:
    """The text without its marks, and the line, column and length of the marked piece."""
    before, rest = text.split("«")
    piece, after = rest.split("»")
    return before + piece + after, (before.count("\n") + 1, len(before) - before.rfind("\n"), max(1, len(piece)))


def findings(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        loads(text, "a.yaml")
    return caught.value.diagnostics


ERRORS: dict[str, tuple[str, str, str]] = {
    # YAML
    "tab": (LINEAR + "head:\n«\t»key_dim: 3\n", "not valid YAML", "tabs"),
    "unclosed bracket": (MATRIX + "update: {rule: linear\nsegment«:» {}\n", "not valid YAML", ""),
    "colon in a text": (LINEAR + "doc: a«:» b\n", "mapping values are not allowed", "quote"),
    "two documents": (LINEAR + "«-»--\na: 1\n", "single document", "one spec a file"),
    "undefined alias": (LINEAR + "doc: «*»b\n", "undefined alias", ""),
    "control character": (LINEAR + "doc: «\x01»\n", "U+0001", ""),
    "no such character": (LINEAR + 'doc: "\\U«0»0110000"\n', "no character", ""),
    "surrogate": (LINEAR + 'doc: «"\\ud800"»\n', "surrogate", ""),
    "tag": (LINEAR + "doc: «!»!python/name:os.system x\n", "a tag", "no YAML tags"),
    "list": ("«-» a\n", "a spec is a mapping", "mcgen: 1"),
    "empty": ("«»", "the file is empty", "mcgen: 1"),
    "twice": (LINEAR + "«name»: b\n", "`name` stands twice", "first on line 2"),
    "key that is a list": (LINEAR + "? «[a]»\n: 1\n", "a key is a name", ""),
    "alias in itself": (LINEAR + "doc: «&a [*a]»\n", "aliases repeat too many values", ""),
    # fields and types
    "unknown field": (LINEAR + "«segmnt»: {size: 3}\n", "unknown field `segmnt`", "did you mean `segment`?"),
    "unknown inner field": (LINEAR + "segment: {«sise»: 3}\n", "unknown field `sise`", "did you mean `size`?"),
    "gates at the top": (LINEAR + "«gates»: {alpha: 0.5}\n", "unknown field `gates`", "it is a field of update"),
    "objective at the top": (LINEAR + "«objective»: sum(p)\n", "unknown field `objective`", "it is a field of update"),
    "size of an update": (
        MATRIX + "update: {rule: linear, «size»: 3}\n",
        "unknown field `size`",
        "it is a field of segment",
    ),
    "function of an update": (
        MATRIX + "update: {rule: linear, «fn»: exp}\n",
        "unknown field `fn`",
        "it is a field of a gate, in update.gates",
    ),
    "kind at the top": (
        LINEAR + "«kind»: matrix\n",
        "unknown field `kind`",
        "it is a field of memory and of aggregate",
    ),
    "gate by channel": (
        gates("alpha: {fn: sigmoid, «per»: key}"),
        "unknown field `per`, for a gate by channel",
        "one number a token and head",
    ),
    "another router": (
        LINEAR + "aggregate: {kind: grm, «weight»: relu}\n",
        "unknown field `weight`, for another router",
        "softmax",
    ),
    "merge key": (LINEAR + "«<<»: {}\n", "unknown field `<<`", ""),
    "unknown field of a gate": (gates("alpha: {«form»: dt}"), "unknown field `form`", "did you mean `from`?"),
    "unknown field of a chunk": (
        MLP + "update: {rule: titans, gradient: {«chunks»: 3}}\n",
        "unknown field `chunks`",
        "did you mean `chunk`?",
    ),
    "no name": ("«mcgen: 1»\nmemory: {kind: matrix}\nupdate: {rule: linear}\n", "missing field `name`", "identifier"),
    "no kind": ("mcgen: 1\nname: a\n«memory»: {}\nupdate: {rule: linear}\n", "missing field `kind` in memory", "M(x)"),
    "no update": ("«mcgen: 1»\nname: a\nmemory: {kind: matrix}\n", "missing field `update`", ""),
    "version": ("mcgen: «2»\nname: a\nmemory: {kind: matrix}\nupdate: {rule: linear}\n", "version 2", "version 1"),
    "version true": ("mcgen: «true»\nname: a\nmemory: {kind: matrix}\nupdate: {rule: linear}\n", "a whole number", ""),
    "version as text": ("mcgen: «'1'»\nname: a\nmemory: {kind: matrix}\nupdate: {rule: linear}\n", "whole", "quotes"),
    "true for a count": (LINEAR + "segment: {size: «true»}\n", "segment.size must be a whole number, not true", ""),
    "float for a count": (LINEAR + "segment: {size: «1.5»}\n", "a whole number, not 1.5", ""),
    "text for a number": (LINEAR + "aggregate: {scale: «'1'»}\n", "a number, not `1`", "remove the quotes"),
    "not a number": (LINEAR + "aggregate: {scale: «.nan»}\n", ".nan is not a finite number", ""),
    "infinite": (LINEAR + "aggregate: {scale: «-.inf»}\n", "-.inf is not a finite number", ""),
    "beyond a float": (LINEAR + "aggregate: {scale: «1e999»}\n", "1e999 is not a finite number", ""),
    "huge integer": (LINEAR + f"segment: {{size: «{'9' * 5000}»}}\n", "a number too large", "digits"),
    "large integer": (LINEAR + f"segment: {{size: «{10**12}»}}\n", "at most 2147483647", ""),
    "yes": (LINEAR + "layer: {output_gate: «yes»}\n", "true or false, not `yes`", "write true"),
    "number for a flag": (LINEAR + "layer: {output_gate: «1»}\n", "true or false, not 1", ""),
    "section that is a word": (
        "mcgen: 1\nname: a\nmemory: «matrix»\nupdate: {rule: linear}\n",
        "a mapping",
        "kind: mat",
    ),
    "rule without its key": (MATRIX + "update: «linear»\n", "update must be a mapping", "write {rule: linear}"),
    "null": (MATRIX + "update:\nhead:«» \n", "head must be a mapping, not empty", ""),
    "zero size": (LINEAR + "segment: {size: «0»}\n", "at least 1, not 0", ""),
    "one layer": (MLP.replace("mlp", "mlp, layers: «1»") + "update: {rule: titans}\n", "at least 2, not 1", ""),
    "head too large": (LINEAR + "head: {key_dim: «257»}\n", "head.key_dim must be at most 256, not 257", ""),
    "head of nothing": (LINEAR + "head: {value_dim: «0»}\n", "at least 1", ""),
    "chunk of nothing": (MLP + "update: {rule: titans, gradient: {chunk: «0»}}\n", "at least 1", ""),
    "gradient": (MLP + "update: {rule: titans, gradient: «16»}\n", "cannot be 16", "{chunk: 16}"),
    "unknown aggregate": (LINEAR + "aggregate: {kind: «grmm»}\n", "cannot be `grmm`", "did you mean `grm`?"),
    "unknown rule": (MATRIX + "update: {rule: «titan»}\n", "update.rule cannot be `titan`", "did you mean `titans`?"),
    "unknown gate function": (gates("alpha: {fn: «sigmod»}"), "cannot be `sigmod`", "did you mean `sigmoid`?"),
    "true for a gate": (gates("alpha: «true»"), "must be a number or a mapping, not true", ""),
    "word for a gate": (gates("alpha: «sigmoid»"), "must be a number or a mapping", "write {fn: sigmoid}"),
    "steps as one text": (MATRIX + "update: {steps: «M = M»}\n", "update.steps must be a list", "an item"),
    "no steps": (MATRIX + "update: {steps: «[]»}\n", "at least 1 item, not 0", ""),
    "step that is a mapping": (steps("«M: M»"), "must be a text, not a mapping", ""),
    # names
    "keyword": (LINEAR.replace("name: a", "name: «lambda»"), "is a Python keyword", ""),
    "module": (LINEAR.replace("name: a", "name: «torch»"), "module", ""),
    "not an identifier": (LINEAR.replace("name: a", "name: «a-b»"), "is not a Python identifier", ""),
    "path as name": (LINEAR.replace("name: a", "name: «../a»"), "is not a Python identifier", ""),
    "not ASCII": (LINEAR.replace("name: a", "name: «é»"), "ASCII", ""),
    "dunder": (LINEAR.replace("name: a", "name: «__init__»"), "two underscores", ""),
    "class that is a keyword": (LINEAR.replace("name: a", "name: «none»"), "class None", ""),
    "class that is no name": (LINEAR.replace("name: a", "name: «_1»"), "class 1", ""),
    "projection": (gates("alpha: {from: «a-b»}"), "the projection `a-b` is not a Python identifier", "dt"),
    # contradictions
    "ssc without top_k": (LINEAR + "aggregate: {kind: «ssc»}\n", "ssc needs `top_k`", "top_k: 2"),
    "top_k elsewhere": (LINEAR + "aggregate: {kind: soup, «top_k»: 2}\n", "`top_k` without ssc", "kind: ssc"),
    "top_k of the default": (LINEAR + "aggregate: {«top_k»: 2}\n", "the aggregate is grm", "kind: ssc"),
    "size of logarithmic": (LINEAR + "segment: {mode: logarithmic, «size»: 4}\n", "`size` with mode: logarithmic", ""),
    "mlp field of a matrix": (
        LINEAR.replace("matrix", "matrix, «layers»: 2"),
        "`layers` is a field of mlp",
        "kind: mlp",
    ),
    "rule and steps": (MATRIX + 'update: {rule: linear, «steps»: ["M = M"]}\n', "`steps` beside `rule`", ""),
    "rule and objective": (MATRIX + "update: {rule: delta, «objective»: sum(p)}\n", "`objective` beside `rule`", ""),
    "neither": (MATRIX + "«update»: {gradient: token}\n", "needs `rule` or `steps`", "rule: linear"),
    "residual": (TITANS + "head: {key_dim: 8, value_dim: «16»}\n", "value_dim equal to key_dim", "residual: false"),
    "residual of a default": (TITANS + "head: {key_dim: «8»}\n", "value_dim equal to key_dim", "value_dim 64"),
    "gate no step uses": (gates("«alhpa»: 0.5"), "no step uses a gate `alhpa`", "did you mean `alpha`?"),
    "gate of a rule without": (
        MATRIX + "update: {rule: linear, gates: {«alpha»: 1}}\n",
        "no step uses a gate `alpha`",
        "has no gates",
    ),
    "gate that is a slot": (gates("«M»: 0.5"), "no step uses a gate `M`", "it is a slot"),
    "outer on an mlp": (steps("M = M + «outer(v, k)»", head=MLP), "outer(…) on an mlp", "only a matrix"),
    "outer of a preset on an mlp": (MLP + "update: {rule: «linear»}\n", "(in `M = M + outer(v, k)`)", "only a matrix"),
    "grad without objective": (steps("M = M - eta*«grad»"), "grad without an objective", "add objective"),
    # steps
    "no assignment": (steps("«M + outer(v, k)»"), "a step assigns a slot", "slot = expression"),
    "two assignments": (steps("M = S «=» M"), "more than one `=`", ""),
    "comparison": (steps("M =«=» M"), "more than one `=`", ""),
    "augmented": (steps("M «+»= outer(v, k)"), "a step assigns one name", ""),
    "nothing assigned": (steps("M «=»"), "ends too early", ""),
    "no slot": (steps('"«=» M"'), "a step assigns one name", ""),
    "reserved slot": (steps("«v» = M", "M = M"), "`v` cannot be assigned: it is reserved", ""),
    "function as slot": (steps("«exp» = M", "M = exp"), "`exp` cannot be assigned: it is a function", ""),
    "constant as slot": (steps("«pi» = M", "M = M"), "`pi` cannot be assigned: it is a constant", ""),
    "keyword as slot": (steps("«if» = M", "M = M"), "it is a Python keyword", ""),
    "keyword as gate": (steps("M = «lambda»*M"), "`lambda` cannot be a gate: it is a Python keyword", ""),
    "argument as gate": (steps("M = «state»*M"), "`state` cannot be a gate: it is reserved", ""),
    "reserved as gate": (steps("M = «p»*M"), "`p` cannot be a gate: it is reserved", ""),
    "dunder as gate": (steps("M = «__class__»*M"), "two underscores", ""),
    "vector outside outer": (steps("M = M + «v»"), "`v` is a vector", "outer(v, k)"),
    "lag outside outer": (steps("M = M + «v[-1]»"), "`v[-1]` outside outer", "outer(v[-1], k[-1])"),
    "lagged gradient": (
        steps("M = M - eta*«grad[-1]»", more="  objective: sum((p - v)**2)\n"),
        "a lag on grad",
        "G = grad",
    ),
    "lagged connector": (steps("M = M + «u[-1]»*outer(v, k)"), "a lag on `u`", "only v and k inside outer"),
    "lagged gate": (steps("M = «alpha[-1]»*M"), "a lag on a gate", "inside outer"),
    "lagged slot": (steps("M = «M[-1]»"), "a lag on a slot", "inside outer"),
    "lagged slot of another name": (steps("S = S", "M = «S[-2]»"), "a lag on a slot", "assigns `S` reads last token's"),
    "positive lag": (steps("M = outer(v[«1»], k)"), "never ahead", "v[-1]"),
    "lag that is a name": (steps("M = outer(v[-«n»], k)"), "a lag is a whole number", "v[-1]"),
    "lag that is a fraction": (steps("M = outer(v[-«1.5»], k)"), "a lag is a whole number", ""),
    "long lag": (steps(f"M = outer(v[-«{10**9}»], k)"), "a lag too long", "65536"),
    "outer the wrong way": (steps("M = outer(«k», v)"), "the first argument of outer is v", "v kᵀ"),
    "outer of itself": (steps("M = outer(v, «v[-1]»)"), "the second argument of outer is k", ""),
    "outer of a product": (steps("M = outer(«alpha*v», k)"), "the first argument of outer is v", "alpha*outer(v, k)"),
    "outer of keys": (steps("M = M + outer(«k», k)"), "the first argument of outer is v", "shaped like the memory"),
    "second key": (steps("M = M + outer(v, «k2»)"), "the second argument of outer is k", "one k and one v a token"),
    "second value": (steps("M = M + outer(«v2[-1]», k)"), "the first argument of outer is v", "earlier tokens'"),
    "outer of a sum": (steps("M = M + outer(«v - beta*v[-1]», k)"), "the first argument of outer is v", "write a sum"),
    "connector in outer": (steps("M = M + outer(v, «u»)"), "the second argument of outer is k", "factors"),
    "read in outer": (steps("M = M - outer(«M(k1) - v1», k)"), "a read of the memory, `M(k1) - v1`", "grad is outer"),
    "prediction in outer": (steps("M = M - outer(«p - v», k)"), "a read of the memory, `p - v`", "grad is outer"),
    "read of a slot": (steps("S = S + outer(v, k)", "M = M + «S(k)»"), "a read of the memory, `S(k)`", "grad alone"),
    "read by @": (steps('"M = M - outer(M «@» k - v, k)"'), "'@' is not part of the language", "dot(p, v)"),
    "diagonal": (steps("M = M*«diag(alpha)» + outer(v, k)"), "diag(…) in a step", "alpha*M scales all of M"),
    "inverse": (steps("H = H + outer(v, k)", "M = «inv(H)»"), "inv(…) in a step", "linear in the slots"),
    "outer of one": (steps("M = «outer(v)»"), "outer takes 2 arguments, not 1", ""),
    "sum in a step": (steps("M = M*«sum»(alpha)"), "sum(…) has no place in a step", "objectives"),
    "unknown function": (steps("M = «sigmod»(alpha)*M"), "unknown function `sigmod`", "did you mean `sigmoid`?"),
    "arity": (steps("M = «exp(alpha, beta)»*M"), "exp takes 1 argument, not 2", ""),
    "arity of max": (steps("M = «max(alpha)»*M"), "max takes 2 arguments, not 1", ""),
    "no step assigns M": (MATRIX + 'update: {«steps»: ["S = S + outer(v, k)"]}\n', "no step assigns M", "M = …"),
    "cut at a comma": (MATRIX + "update: {steps: [M = outer(«v», k)]}\n", "ends too early", "quote the line"),
    "product without sign": (steps("M = 2 «M»"), "a product needs its sign", "`*`"),
    "two names": (steps("M = alpha «M»"), "a product needs its sign", "write `*`: alpha*M"),
    "a name and a parenthesis": (steps("M = (alpha + beta) «(»M + S)"), "a product needs its sign", "between the"),
    "a number and a parenthesis": (steps("M = 2«(»M)"), "a product needs its sign", "between the factors"),
    "a parenthesis and a name": (steps("M = (1 - alpha) «M»"), "a product needs its sign", "between the factors"),
    "two names in a call": (steps("M = exp(alpha «beta»)*M"), "a product needs its sign", "alpha*beta"),
    "a gate called": (steps("M = «alpha»(M)"), "unknown function `alpha`", "a product is written alpha*(…)"),
    "unclosed": (steps("M = (alpha + beta*«M»"), "ends too early", "`)`"),
    "nothing after an operator": (steps("M = alpha*M «+»"), "ends too early", "missing after `+`"),
    "unclosed in quotes": (
        MATRIX + 'update: {steps: ["M = alpha*(M + outer(v, k«)»", "S = M"]}\n',
        "ends too early",
        "expected `)`",
    ),
    "unclosed in single quotes": (
        MATRIX + "update: {steps: ['M = alpha*(M + outer(v, k«)»', 'S = M']}\n",
        "ends too early",
        "expected `)`",
    ),
    "closed twice": (steps("M = alpha*M«)»"), "unexpected `)`", ""),
    "caret": (steps("M = alpha«^»2*M"), "'^' is not part of the language", "**"),
    "quote": (steps('M = alpha«"»*M'), "is not part of the language", ""),
    "attribute": (steps("M = M«.»T"), "is not part of the language", ""),
    "comma": (steps("M = alpha«,» M"), "unexpected `,`", ""),
    "keyword argument": (steps('"M = exp(x«=»1)"'), "more than one `=`", ""),
    "tower of powers": (steps("M = «2**10**10»*M"), "no finite value", ""),
    "large exponent": (steps("M = alpha**«101»*M"), "an exponent too large", "at most 100"),
    "long number": (steps(f"M = «{'1' * 400}»*M"), "a number too large", ""),
    "root of a negative": (steps("M = «sqrt(1 - 2)»*M"), "no finite value", ""),
    "division by zero": (steps("M = M/«0»"), "a division by zero", ""),
    "deep nesting": (steps("M = " + "(" * 40 + "«(»" + "M"), "nested too deeply", ""),
    "many signs": (steps("M = " + "-" * 39 + "«-»" + "-M"), "nested too deeply", ""),
    "long text": (steps("«M = M" + " + M" * 600 + "»"), "more than 2000 characters", ""),
    "many symbols": (steps("M = M" + "+M" * 198 + "+«M»" + "+M" * 10), "more than 400 symbols", ""),
    # objectives
    "unknown name in an objective": (objective("sum((p - «k»)**2)"), "unknown name `k`", "p and v"),
    "function of a sum": (objective("«exp(sum(p))»"), "a function of a sum", "combination"),
    "power of a sum": (objective("«sum(p)**2»"), "a function of a sum", "combination"),
    "product of sums": (objective("«sum(p)*dot(p, v)»"), "a product of sums", "combination"),
    "one over a sum": (objective("«1/sum(p)»"), "a function of a sum", "combination"),
    "sum of a sum": (objective("sum(p*«sum»(p))"), "sum(…) has no place in the sum", ""),
    "vector outside a sum": (objective("«(p - v)**2»"), "a vector outside sum(…)", "sum((p - v)**2)/2"),
    "constant in an objective": (objective("sum(p) + «1»"), "a constant has no gradient", ""),
    "outer in an objective": (objective("sum(«outer»(v, p))"), "outer(…) has no place in the sum", "steps"),
    "lag in an objective": (objective("dot(p, «v[-1]»)"), "a lag in the dot", "outer"),
    "dot of one": (objective("«dot(p)»"), "dot takes 2 arguments, not 1", ""),
    "unknown function in an objective": (objective("sum(«sqr»(p))"), "unknown function `sqr`", "`sqrt`"),
    "misspelt sum": (objective("«summ»(p)"), "unknown function `summ`", "did you mean `sum`?"),
    # activations and constants a head
    "unknown activation": (MLP.replace("mlp", "mlp, activation: «gleu»") + "update: {rule: dla}\n", "`gleu`", "`gelu`"),
    "function as activation": (
        MLP.replace("mlp", "mlp, activation: «cos»") + "update: {rule: dla}\n",
        "is not an activation by name",
        "write cos(x)",
    ),
    "unknown name in an activation": (
        MLP.replace("mlp", "mlp, activation: x*«y»") + "update: {rule: dla}\n",
        "unknown name `y` in an activation",
        "only x",
    ),
    "constant activation": (
        MLP.replace("mlp", 'mlp, activation: «"2*pi"»') + "update: {rule: dla}\n",
        "does not depend on x",
        "",
    ),
    "unknown name a head": (gates('alpha: {per_head: "1 - «g»"}'), "unknown name `g` in per_head", "only h"),
    "infinite head": (gates('alpha: {per_head: "«1/(h - 3)»"}'), "no finite value at h = 3", "0 to 15"),
    "huge head": (gates('alpha: {per_head: "«10**(90*h)»"}'), "no finite value at h = 4", ""),
    "constant a head and more": (gates('alpha: {per_head: "h", «fn»: exp}'), "unknown field `fn`", "alone"),
}


@pytest.mark.parametrize(("text", "message", "hint"), ERRORS.values(), ids=ERRORS)
def test_error_points_at_its_cause(text: str, message: str, hint: str) -> None:
    text, place = unmarked(text)
    found = findings(text)
    matching = [one for one in found if message in one.message]
    assert matching, [one.render() for one in found]
    assert hint in matching[0].hint
    assert (matching[0].line, matching[0].column, matching[0].length) == place
    assert matching[0].source_line == text.splitlines()[place[0] - 1] if text else True


SPANS: dict[str, str] = {
    "plain": steps("M = alpha*M + «foo»(beta)"),
    "single quotes": steps("'M = alpha*M + «foo»(beta)'"),
    "double quotes": steps('"M = alpha*M + «foo»(beta)"'),
    "after escapes": steps(r'"M = \x61lpha\u002aM \t + «foo»(beta)"'),
    "over an escape": steps(r'"M = «f\u006fo»(beta)"'),
    "escaped line break": steps('"M = alpha*M + \\\n        «foo»(beta)"'),
    "plain over lines": steps("M = alpha*M +\n        «foo»(beta)"),
    "quoted over lines": steps('"M = alpha*M +\n\n        «foo»(beta)"'),
    "folded": steps(">-\n      M = alpha*M +\n      «foo»(beta)"),
    "folded, more indented": steps(">\n      M = alpha*M +\n         «foo»(beta)\n"),
    "literal": steps("|-\n      M = alpha*M +\n      «foo»(beta)"),
    "literal with a comment": steps("| # foo(\n      M = alpha*M + «foo»(beta)\n"),
    "anchor": steps('&a "M = alpha*M + «foo»(beta)"'),
    "wide characters before": steps('"M = alpha*M + «foo»(beta)"', more="  # ééé 漢字 🎉\n"),
    "flow list": MATRIX + 'update: {gates: {alpha: 1}, steps: ["S = S", "M = alpha*M + «foo»(S)"]}\n',
    "windows line ends": steps("M = alpha*M + «foo»(beta)").replace("\n", "\r\n"),
    "objective": objective("sum(«foo»(p))"),
    "objective, folded": objective(">\n    sum(p)\n    + sum(«foo»(p))"),
    "activation": MLP.replace("mlp", "mlp, activation: x*«foo»(x)") + "update: {rule: dla}\n",
    "per_head": gates("alpha: {per_head: 1 - «foo»(h)}"),
}


@pytest.mark.parametrize("text", SPANS.values(), ids=SPANS)
def test_spans_lie_right_in_every_style_of_text(text: str) -> None:
    text, place = unmarked(text)
    found = [one for one in findings(text) if one.message == "unknown function `foo`"]
    assert [(one.line, one.column, one.length) for one in found] == [place]


def test_all_errors_of_a_file_at_once_in_its_order() -> None:
    text = (
        "mcgen: 1\nname: lambda\nmemory: {kind: mlp, layers: 1}\nupdate:\n  objective: sum(q)\n"
        '  steps: ["S = foo(S)", "M = M + outer(v, k)", "M = 3 M"]\n  gates: {a: {fn: b}}\n'
        "segment: {mode: logarithmic, size: 3}\naggregate: {kind: ssc}\nhead: {key_dim: 300, value_dim: 3}\nhaed: 3\n"
    )
    found = findings(text)
    places = [(one.line, one.column) for one in found]
    assert places == sorted(places)
    assert [line for line, _ in places] == [2, 3, 5, 5, 6, 6, 6, 7, 8, 9, 10, 10, 11]


def test_a_value_that_cannot_be_read_has_one_error() -> None:
    assert len(findings(LINEAR + "aggregate: {scale: .nan}\n")) == 1
    assert len(findings(MATRIX + "update: {rule: 1e999}\n")) == 1
    assert len(findings(LINEAR + "aggregate: {kind: ssc, top_k: .inf}\n")) == 1


WARNINGS: dict[str, tuple[str, str]] = {
    "slot nothing reads": (steps("«S = S + outer(v, k)»", "M = M + outer(v, k)"), "reads the slot `S`"),
    "slots that read only each other": (
        steps("«S = S + outer(v, k)»", "R = S", "M = M + outer(v, k)"),
        "reads the slot `S`",
    ),
    "unused objective": (
        steps("M = M + outer(v, k)", more="  objective: «sum(p)»\n"),
        "no step uses grad",
    ),
    "objective without p": (objective("«sum(v)»"), "does not depend on p"),
}


@pytest.mark.parametrize(("text", "message"), WARNINGS.values(), ids=WARNINGS)
def test_warning_points_at_its_cause(text: str, message: str) -> None:
    text, place = unmarked(text)
    matching = [one for one in loads(text).warnings if message in one.message]
    assert [(one.severity, one.line, one.column, one.length) for one in matching] == [("warning", *place)]


def test_warnings_come_along_with_errors() -> None:
    text = steps("S = S + outer(v, k)", "M = M + outer(v, k)") + "haed: 3\n"
    assert {one.severity for one in findings(text)} == {"error", "warning"}


def test_bad_utf_8_has_a_position(tmp_path) -> None:
    from mcgen.spec import load

    path = tmp_path / "a.yaml"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + LINEAR.encode() + "doc: é".encode() + b"\xff\n")
        with pytest.raises(SpecError) as caught:
            load(path)
        (found,) = caught.value.diagnostics
        assert (found.line, found.column, found.message) == (5, 7, "not UTF-8: the byte 0xff")


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_the_users_error(tmp_path, name: str) -> None:
    from mcgen.spec import load

    with pytest.raises(SpecError, match="cannot be read"):
        load(tmp_path / name)


GOLDEN = {
    LINEAR + "segmnt: {size: 3}\n": """\
error: unknown field `segmnt`
  a.yaml:5:1
  segmnt: {size: 3}
  ^^^^^^ did you mean `segment`?""",
    steps("M = sigmod(alpha)*M"): """\
error: unknown function `sigmod`
  a.yaml:6:11
      - M = sigmod(alpha)*M
            ^^^^^^ did you mean `sigmoid`?""",
    LINEAR + "aggregate: {kind: ssc}\n": """\
error: ssc needs `top_k`
  a.yaml:5:19
  aggregate: {kind: ssc}
                    ^^^ how many cached segments a token reads, such as top_k: 2""",
    TITANS.replace("titans", "swla"): """\
error: outer(…) on an mlp (in `M = alpha*M + beta*outer(v[-1], k[-1]) + lam*outer(v, k)`)
  a.yaml:4:16
  update: {rule: swla}
                 ^^^^ an mlp learns by grad; only a matrix takes outer(v, k)""",
    LINEAR + "head:\n\tkey_dim: 3\n": """\
error: not valid YAML: found character '\ufffd' that cannot start any token
  a.yaml:6:1
  \tkey_dim: 3
  ^ quote the text; indent with spaces, not tabs""".replace("\ufffd", "\\t"),
}


@pytest.mark.parametrize(("text", "rendered"), GOLDEN.items(), ids=["field", "function", "ssc", "preset", "tab"])
def test_golden_messages(text: str, rendered: str) -> None:
    assert str(SpecError(findings(text))) == rendered
