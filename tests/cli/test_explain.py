"""`mcgen explain`: every stage, as text, JSON and HTML; and the dump of a build."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.cli.explain import STAGES
from mcgen.cli.output import wrapped
from mcgen.dump import VARIABLE, Dump, tabulated
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from mcgen.spec.text import spec_text

HUBER = "sum(sqrt(1 + (p - v)**2))"


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, [*arguments], env=environment)


def written(folder: Path, update: dict[str, Any], **sections: Any) -> str:
    spec = {"mcgen": 1, "name": "example", "memory": {"kind": "matrix"}, "update": update, **sections}
    path = folder / "example.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("stage", "pieces"),
    [
        ("spec", ["name: swla_soup", "gradient: token", "size: 256"]),
        ("recurrence", ["M[t] = alpha*M[t-1] + beta*v[t-1] k[t-1]ᵀ + lam*v[t] k[t]ᵀ", "soup is grm", "written soup"]),
        ("closed-form", ["prod_{j<m<=t} alpha_m · beta_j", "for G_j = v[j-1] k[j-1]ᵀ"]),
        ("ir", ["As built: program step", "Then: program blend_vjp", "identity: f(x) = x", "scalar operations"]),
        ("plan", ["Launches"]),
        ("cost", ["B*H*K*T*V*(N - 1)", "together", "Bytes moved"]),
    ],
)
def test_one_stage(stage: str, pieces: list[str]) -> None:
    done = run("explain", "swla_soup", "--stage", stage)
    assert done.exit_code == 0, done.output
    title, _ = STAGES[stage]
    assert done.output.startswith(title)
    assert all(piece in done.output for piece in pieces)
    assert sum(heading in done.output.splitlines() for heading, _ in STAGES.values()) == 1


CASCADE = ["R = a*R + outer(v, k)", "S = b*S + R", "T = d*T + R", "M = c*M + S + T"]


def test_nothing_is_wider_than_120_columns(tmp_path: Path) -> None:
    """Tables fold, lines go on below further in, and nothing is lost: not of a line of many products either."""
    wide = {"steps": [f"M = {'*'.join(f'gate_{n}' for n in range(30))}*M + outer(v, k)"]}
    for spec in ("titans_ssc", "momentum_delta_grm", written(tmp_path, {"steps": CASCADE}), written(tmp_path, wide)):
        done = run("explain", spec)
        assert done.exit_code == 0
        assert max(map(len, done.stdout.splitlines())) <= 120
    assert "gate_29" in run("explain", written(tmp_path, wide), "--stage", "recurrence").stdout


def test_a_wrapped_line_is_that_line() -> None:
    line = "  %12[t j] = " + " + ".join(f"%{n}*%{n + 1}" for n in range(40))
    first, *others = wrapped(line, 120).splitlines()
    assert " ".join([first, *(other.strip() for other in others)]) == line
    assert all(other.startswith(("      %", "      +")) for other in others)
    product = "*".join(f"%{n}" for n in range(80))
    pieces = wrapped(product, 50).splitlines()
    assert "".join(piece.strip() for piece in pieces) == product
    assert all(len(piece) <= 50 and piece.endswith("*") for piece in pieces[:-1])


def test_rewrites_that_did_not_apply_are_not_shown() -> None:
    done = run("explain", "linear_grm", "--stage", "ir")
    assert "identity: f(x) = x  ->  x" in done.stdout
    assert "nothing to solve" not in done.stdout


@pytest.mark.parametrize("name", ["titans_matrix_grm", "titans_ssc", "gated_delta_grm", "swla_ssc"])
def test_a_product_over_tokens_runs_over_an_index_of_its_own(name: str) -> None:
    """`product of %1[i] over m < i <= t`: the index is no axis of the program, and stands for nothing else in it."""
    text = run("explain", name, "--stage", "ir").stdout
    products = re.findall(r"product of %\d+\[(\w+)\] over (\w+) < (\w+) <=? (\w+)", text)
    axes = {axis for found in re.findall(r"%\d+\[([\w ]*)\] = ", text) for axis in found.split()}
    assert products and axes
    assert all(index == bound and index not in axes | {lower, upper} for index, lower, bound, upper in products)


def test_no_two_indices_of_a_line_share_a_name(tmp_path: Path) -> None:
    """Every sum and product of a closed form binds names that no other of its line does."""
    text = run("explain", written(tmp_path, {"steps": CASCADE}), "--json", "--stage", "closed-form").stdout
    lines = [line for block in json.loads(text)["closed-form"]["text"] for line in block.splitlines()]
    for line in lines:
        chains = [re.split("<=?", bounds) for bounds in re.findall(r"(?:sum|prod)_\{([^}]*)\}", line)]
        bound = [name for chain in chains for name in chain[1:-1]]
        assert len(bound) == len(set(bound))
    assert any(line.count("prod_") > 4 for line in lines)


def test_all_stages_in_order() -> None:
    done = run("explain", "linear_residual")
    places = [done.output.index(title) for title, _ in STAGES.values()]
    assert done.exit_code == 0
    assert places == sorted(places)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_spec(name: str) -> None:
    for stage in ("recurrence", "closed-form", "plan", "cost"):
        done = run("explain", name, "--stage", stage)
        assert (done.exit_code, done.stderr) == (0, "")


def test_json_holds_texts_and_tables() -> None:
    done = run("explain", "swla_grm", "--json")
    found = json.loads(done.output)
    assert list(found) == list(STAGES)
    assert all(section["title"] and (section["text"] or section["tables"]) for section in found.values())
    cost = found["cost"]["tables"][0]
    assert {len(row) for row in cost["rows"]} == {len(cost["columns"])}
    assert list(json.loads(run("explain", "swla_grm", "--json", "--stage", "cost").output)) == ["cost"]


def test_html_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "swla.html"
    done = run("explain", "swla_grm", "--html", str(path))
    assert (done.exit_code, done.output) == (0, f"wrote {path}\n")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?://|<link|<script|src=", text)
    for title, _ in STAGES.values():
        assert title.replace(">", "&gt;") in text


def test_what_a_user_wrote_is_text_in_the_file(tmp_path: Path) -> None:
    """Neither markup of the terminal's nor of a browser."""
    doc = "[bold red]<script>alert(1)</script>[/bold red] {{ x }} ]("
    spec = written(tmp_path, {"rule": "linear"}, doc=doc)
    assert doc in run("explain", spec, "--stage", "spec").output
    run("explain", spec, "--html", str(tmp_path / "a.html"))
    assert "<script" not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_spec_that_is_not_lowered_is_explained_as_far_as_it_goes(tmp_path: Path) -> None:
    spec = written(tmp_path, {"objective": HUBER, "steps": ["M = M - eta*grad"]})
    done = run("explain", spec)
    assert done.exit_code == 0
    assert "Not reached: gradient: token needs an objective quadratic in p" in done.output
    one = run("explain", spec, "--stage", "ir")
    assert one.exit_code == 2
    assert "gradient: {chunk: b}" in one.stderr
    assert run("explain", spec, "--stage", "closed-form").exit_code == 0


def test_a_deep_memory(tmp_path: Path) -> None:
    done = run("explain", written(tmp_path, {"rule": "titans"}, memory={"kind": "mlp"}))
    assert done.exit_code == 0
    assert "B*H*K*T*X*(K + V)*(N - 1)" in done.output


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"steps": ["M = M*M"]}, "not linear in the slots"),
        ({"steps": ["S = M + S", "M = S + M"]}, "slots feed one another in a cycle"),
        ({"rule": "nothing"}, "update.rule cannot be `nothing`"),
    ],
)
def test_a_wrong_spec_is_the_users_error(tmp_path: Path, update: dict[str, Any], message: str) -> None:
    spec = written(tmp_path, update)
    for command in (["explain"], ["check"], ["build", "-o", str(tmp_path)]):
        done = run(*command, spec)
        assert done.exit_code == 2
        assert message in done.stderr
        assert "Traceback" not in done.output


def test_warnings_are_shown(tmp_path: Path) -> None:
    spec = written(tmp_path, {"steps": ["S = S + outer(v, k)", "M = M + outer(v, k)"]})
    assert "nothing that M depends on reads the slot `S`" in run("explain", spec, "--stage", "spec").stderr


def test_an_unknown_stage_and_an_unwritable_file(tmp_path: Path) -> None:
    assert run("explain", "linear_grm", "--stage", "emit").exit_code == 2
    done = run("explain", "linear_grm", "--html", str(tmp_path / "no" / "a.html"), "--stage", "spec")
    assert (done.exit_code, "No such file" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", shipped())
def test_a_spec_as_text_is_that_spec(name: str) -> None:
    spec = load(shipped()[name])
    assert loads(spec_text(spec)) == spec


def test_any_doc_survives_as_text(tmp_path: Path) -> None:
    for doc in ("'", '"', "a: b # c", "- x", "é🎉\u2028", "multi\nline\n", "{a}", "yes", "1e3", "\\", " padded "):
        spec = load(written(tmp_path, {"rule": "linear"}, doc=doc))
        assert loads(spec_text(spec)).doc == doc


def test_a_build_dumps_every_stage(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    stale = dump / "linear_grm" / "099-old.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    done = run("build", "linear_grm", "swla_grm", "-o", str(tmp_path), **{VARIABLE: str(dump)})
    assert done.exit_code == 0, done.output
    names = [path.name for path in sorted((dump / "linear_grm").iterdir())]
    assert [name[:3] for name in names] == [f"{number:03}" for number in range(1, len(names) + 1)]
    kinds = [re.sub(r"^\d+-|\.txt$", "", name) for name in names]
    assert kinds[:4] == ["spec", "recurrence", "closed-form", "cost"]
    assert kinds[-2:] == ["plan", "module"]
    for kind in (
        "step-as-built",
        "step-after-decay-by-one",
        "step-rewrites",
        "step_vjp-rewrites",
        "blend_vjp-rewrites",
    ):
        assert kind in kinds
    module = (dump / "linear_grm" / names[-1]).read_text(encoding="utf-8")
    assert module == (tmp_path / "linear_grm.py").read_text(encoding="utf-8")
    assert (dump / "swla_grm").is_dir()


def test_what_was_made_before_a_refusal_is_dumped(tmp_path: Path) -> None:
    spec = written(tmp_path, {"objective": HUBER, "steps": ["M = M - eta*grad"]})
    done = run("build", spec, "-o", str(tmp_path), **{VARIABLE: str(tmp_path / "dump")})
    assert done.exit_code == 2
    assert len(list((tmp_path / "dump" / "example").iterdir())) == 4


def test_without_a_folder_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    dump = Dump.of("a")
    dump("x", lambda: pytest.fail("the text was asked for"))
    assert dump.folder is None


def test_a_dump_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("build", "linear_grm", "-o", str(tmp_path), **{VARIABLE: str(tmp_path / "file")})
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_tables_are_aligned() -> None:
    assert tabulated(["a", "bb"], [["ccc", "d"]]) == "a    bb\nccc  d"
