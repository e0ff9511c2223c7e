"""What a run found, for people: tables for a terminal (`text`), and one HTML page with pictures (`page`)."""

from st_distill.report.text import findings_report, report, task_report, write_report

__all__ = ["findings_report", "report", "task_report", "write_report"]
