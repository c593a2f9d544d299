"""The demonstration asks what it says it asks, of models that differ in their cache alone, and the README shows it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mcgen.spec import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recall() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recall", ROOT / "demo" / "recall.py")
    module = sys.modules["recall"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_stood_beside_their_keys(recall: ModuleType) -> None:
    for pairs in (1, 8, recall.KEYS):
        task = recall.Task.draw(3, pairs, torch.Generator().manual_seed(0))
        assert task.tokens.shape == (3, 3 * pairs)
        for tokens, answers in zip(task.tokens.tolist(), task.answers.tolist(), strict=True):
            written = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
            asked = tokens[2 * pairs :]
            assert len(written) == pairs and sorted(asked) == sorted(written)
            assert [written[key] - recall.KEYS for key in asked] == answers


def test_accuracy_is_the_share_of_values_named(recall: ModuleType) -> None:
    task = recall.Task.draw(4, 8, torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(task.answers, recall.VALUES).float()
    assert task.accuracy(logits) == 1
    assert task.accuracy(logits.roll(1, -1)) == 0
    assert task.accuracy(torch.cat([logits[:1].roll(1, -1), logits[1:]])) == 0.75


def test_the_models_differ_in_their_cache_alone(recall: ModuleType) -> None:
    plain, cached = (load(ROOT / "demo" / f"{name}.yaml").to_dict() for name in recall.MEMORIES.values())
    assert {key for key in plain if plain[key] != cached[key]} == {"name", "doc", "segment", "aggregate"}
    assert (plain["aggregate"]["kind"], plain["segment"]["init"]) == ("none", "checkpoint")


def test_the_readme_shows_its_table(recall: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads, rows and their order; the numbers are those of one machine's run."""
    shown = re.search(r"^memory +parameters.*\n(?:\w+ .*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
    recall.report({name: recall.Result([0.5] * len(recall.PAIRS), 12_345) for name in recall.MEMORIES})
    printed = capsys.readouterr().out
    pattern = re.compile(r"[\d,.]+%?")
    heads, *rows = shown.splitlines()
    assert heads in printed.splitlines()
    assert [pattern.sub("", row).split() for row in rows] == [[name] for name in recall.MEMORIES]
    assert all(len(pattern.findall(row)) == 1 + len(recall.PAIRS) for row in rows)
