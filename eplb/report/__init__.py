"""Reports on a load and its plans: figures, tables and a summary in sentences.

Importing this package loads neither matplotlib nor pandas; they are imported when a report is written.
"""

from eplb.report.contents import ReportContents, gather
from eplb.report.folder import FolderOptions, write_folder
from eplb.report.html import write_page
from eplb.report.plan_view import PlanView
from eplb.report.style import ImageFormat

__all__ = ["FolderOptions", "ImageFormat", "PlanView", "ReportContents", "gather", "write_folder", "write_page"]
