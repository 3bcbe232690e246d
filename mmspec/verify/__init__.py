"""Verification rules: which of a tree's nodes the target accepts. One rule, one file."""

from mmspec.verify.base import Chooser, Verifier
from mmspec.verify.coupled import coupled
from mmspec.verify.greedy import greedy

VERIFIERS: dict[str, Verifier] = {"coupled": coupled, "greedy": greedy}

__all__ = ["VERIFIERS", "Chooser", "Verifier", "coupled", "greedy"]
