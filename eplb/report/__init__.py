"""Reports that a person looks at: pictures, tables and plain words. The only room that knows matplotlib and plotly."""

from eplb.report.contents import ReportContents, gather
from eplb.report.plan_view import PlanView

__all__ = ["PlanView", "ReportContents", "gather"]
