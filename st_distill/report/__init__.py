"""What a run found, for people: tables for a terminal (`text`), and one HTML page with pictures (`page`)."""

from st_distill.report.text import report, task_report, write_report

__all__ = ["report", "task_report", "write_report"]
