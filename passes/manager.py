"""Passes, what they report, and the manager that runs them under guard."""

from __future__ import annotations

import logging
import time
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from qir.errors import GraphError, StageError
from qir.graph import Graph, Stage
from qir.verify import verify

from .report import PassReport, Report, count_operators

log = logging.getLogger("qir.passes")


@dataclass(frozen=True)
class Pass(ABC):
    """A whole-graph step. Its dataclass fields are its options (and its command-line flags).

    name:      what reports and recipes call it.
    requires:  the stage, or the stages, of the graphs it takes.
    ensures:   the stage of the graph it gives; None: the stage stays.
    A subclass writes `run`, which mutates the graph it is given (the manager hands it a clone), or, where it
    builds a new graph, `transform`.
    """

    name: ClassVar[str]
    requires: ClassVar[Stage | tuple[Stage, ...]] = Stage.FLOAT
    ensures: ClassVar[Stage | None] = None

    def run(self, graph: Graph) -> PassReport:
        """Rewrite `graph` in place."""
        raise NotImplementedError(f"{type(self).__name__} defines neither run nor transform")

    def transform(self, graph: Graph) -> tuple[Graph, PassReport]:
        """The rewritten graph, which is `graph` itself unless a pass builds a new one."""
        return graph, self.run(graph)

    def apply(self, graph: Graph) -> tuple[Graph, Report]:
        """This pass alone, under the manager's guard: `graph` itself is left as it is.

        Raises StageError when the graph is not in a stage the pass takes, VerifyError when the result is wrong.
        """
        return PassManager([self]).run(graph)

    def report(self) -> PassReport:
        """An empty report under this pass's name."""
        return PassReport(self.name)

    @classmethod
    def stages(cls) -> tuple[Stage, ...]:
        """The stages it takes."""
        return cls.requires if isinstance(cls.requires, tuple) else (cls.requires,)

    @property
    def options(self) -> dict[str, Any]:
        """Field name -> value."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in self.options.items() if isinstance(v, (str, int, float, bool)))
        return f"{self.name}({shown})"


BeforeHook = Callable[[Pass, Graph], None]
"""Called with (pass, graph) before a pass runs."""

AfterHook = Callable[[Pass, Graph, Graph, PassReport], None]
"""Called with (pass, graph before, graph after, report) when a pass is done and verified."""


class PassManager:
    """Runs passes in the order given: requires -> clone -> run -> verify -> ensures -> record.

    A wrong order is a StageError, for the whole pipeline and before anything runs, never a silent reorder.
    The graph given is never changed, whether the run succeeds or fails.
    """

    def __init__(
        self, passes: Sequence[Pass], *, before: Sequence[BeforeHook] = (), after: Sequence[AfterHook] = ()
    ) -> None:
        self.passes, self.before, self.after = tuple(passes), tuple(before), tuple(after)

    def check(self, stage: Stage) -> Stage:
        """The stage that a graph of stage `stage` ends in.  Raises StageError on the first pass out of order."""
        came_from = "the graph given"
        for step in self.passes:
            if stage not in step.stages():
                wanted = " or ".join(s.name for s in step.stages())
                makers = [p.name for p in self.passes if p.ensures in step.stages()]
                hint = f"put {makers[0]} before it" if makers else f"a pass that gives {wanted} must come before it"
                raise StageError(
                    f"takes a graph of stage {wanted}, but {came_from} is {stage.name}",
                    where=f"pass {step.name}", hint=hint,
                )  # fmt: skip
            if step.ensures is not None:
                stage, came_from = step.ensures, f"what {step.name} gives"
        return stage

    def run(self, graph: Graph) -> tuple[Graph, Report]:
        """The rewritten graph and the report.

        Raises StageError (order), VerifyError (a pass left a broken graph), and what a pass itself raises.
        """
        self.check(graph.stage)
        report = Report([])
        for step in self.passes:
            graph, one = self._run_one(step, graph)
            report.passes.append(one)
        return graph, report

    def _run_one(self, step: Pass, graph: Graph) -> tuple[Graph, PassReport]:
        for hook in self.before:
            hook(step, graph)
        start = time.perf_counter()
        result, one = step.transform(graph.clone())
        if result is graph:
            raise GraphError("returned the graph it must leave alone", where=f"pass {step.name}")
        result.stage = graph.stage if step.ensures is None else step.ensures
        one.seconds = time.perf_counter() - start
        verify(result, result.stage)
        one.before, one.after = count_operators(graph), count_operators(result)
        log.info("%s", one.summary())
        for hook in self.after:
            hook(step, graph, result, one)
        return result, one
