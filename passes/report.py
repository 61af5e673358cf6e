"""What passes did: rewrites by rule, near misses with their reasons, notes, time, operator counts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qir.graph import Graph


def count_operators(graph: Graph) -> dict[str, int]:
    """Operator -> how many nodes."""
    return dict(Counter(node.op for node in graph.nodes))


@dataclass(frozen=True)
class NearMiss:
    """A place where `rule` nearly applied, and the sentence that says why it did not."""

    rule: str
    node: str
    reason: str


@dataclass
class PassReport:
    """One pass's work. `rewrites`: rule -> names of the nodes rewritten, in order."""

    name: str
    rewrites: dict[str, list[str]] = field(default_factory=dict)
    misses: list[NearMiss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was measured, as plain data."""

    def rewrote(self, rule: str, node: str) -> None:
        """Record that `rule` rewrote `node`."""
        self.rewrites.setdefault(rule, []).append(node)

    def missed(self, rule: str, node: str, reason: str) -> None:
        """Record a near miss; the same one is kept once."""
        miss = NearMiss(rule, node, reason)
        if miss not in self._seen:
            self._seen.add(miss)
            self.misses.append(miss)

    def note(self, text: str) -> None:
        """Record a sentence for the reader."""
        self.notes.append(text)

    def __post_init__(self) -> None:
        self._seen = set(self.misses)

    @property
    def count(self) -> int:
        """How many rewrites."""
        return sum(len(names) for names in self.rewrites.values())

    def summary(self) -> str:
        """One line."""
        before, after = sum(self.before.values()), sum(self.after.values())
        rules = ", ".join(f"{rule} {len(names)}" for rule, names in self.rewrites.items())
        return f"{self.name}: {before} -> {after} nodes in {self.seconds:.2f} s" + (f" ({rules})" if rules else "")

    def text(self, *, names: int = 4) -> str:
        """A few lines; at most `names` nodes and near misses a rule (`misses` has them all)."""
        lines = [self.summary()]
        for rule, nodes in self.rewrites.items():
            more = f" and {len(nodes) - names} more" if len(nodes) > names else ""
            lines.append(f"  {rule}: {', '.join(nodes[:names])}{more}")
        for rule in dict.fromkeys(m.rule for m in self.misses):
            misses = [m for m in self.misses if m.rule == rule]
            lines += [f"  not {rule} at {m.node}: {m.reason}" for m in misses[:names]]
            if len(misses) > names:
                lines.append(f"  not {rule} at {len(misses) - names} more places")
        lines += [f"  note: {note}" for note in self.notes]
        changed = sorted(op for op in {*self.before, *self.after} if self.before.get(op) != self.after.get(op))
        if changed:
            counts = [f"{op} {self.before.get(op, 0)} -> {self.after.get(op, 0)}" for op in changed]
            lines.append(f"  operators: {', '.join(counts)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "rewrites": {rule: list(nodes) for rule, nodes in self.rewrites.items()},
            "misses": [{"rule": m.rule, "node": m.node, "reason": m.reason} for m in self.misses],
            "notes": list(self.notes),
            "before": dict(self.before),
            "after": dict(self.after),
            **({"data": self.data} if self.data else {}),
        }


@dataclass
class Report:
    """The reports of a pipeline's passes, in order."""

    passes: list[PassReport]

    def __getitem__(self, name: str) -> PassReport:
        """The last report of the pass called `name`.  Raises KeyError."""
        for one in reversed(self.passes):
            if one.name == name:
                return one
        raise KeyError(name)

    def __add__(self, other: Report) -> Report:
        return Report([*self.passes, *other.passes])

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.passes)

    def __str__(self) -> str:
        return "\n".join(one.text() for one in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"passes": [one.to_dict() for one in self.passes]}

    def to_json(self) -> str:
        """The dictionary as JSON text."""
        return json.dumps(self.to_dict(), indent=2)
