"""The two ends of every comparison: P itself, and nothing."""

from __future__ import annotations

from ...evaluation.stand_in import StandIn
from .method import Job, Method


class FullPrompt(Method):
    """P itself."""

    def fit(self, job: Job) -> StandIn:
        return StandIn(prompt=job.prompt)


class NoPrompt(Method):
    """The conversation alone, with the template's default system turn if it has one."""

    def fit(self, job: Job) -> StandIn:
        return StandIn()
