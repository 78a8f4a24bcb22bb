"""Inspect a data set without a card: its contents, its conventions, and the confidence in each.

    report = inspect_dataset("data/my_robot/1.0.0")     # cameras, ranges, languages, findings
    text = draft_card(report)                           # a card to correct by hand
    comparisons = check_dataset("bridge_orig", "data")  # the same detectors against a card

Detectors are plain numpy functions on step dicts and return a `Finding`; with too little evidence the answer is
"unknown", with the reason.
"""

from oxe_curate.inspection.check import Comparison, check_dataset
from oxe_curate.inspection.draft import draft_card, write_draft
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.report import Inspection, inspect_dataset

__all__ = ["Comparison", "Finding", "Inspection", "check_dataset", "draft_card", "inspect_dataset", "write_draft"]
