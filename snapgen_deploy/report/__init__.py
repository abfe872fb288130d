"""The report: bundles, measurements and comparisons as one self-contained HTML page.

views      what the page shows, as plain data         collect   reads manifests and records into views
pictures   preview.png, cut into single pictures      charts    geometry of the inline charts
page       renders the templates                      *.j2      the templates
"""

from snapgen_deploy.report.collect import collect
from snapgen_deploy.report.page import render
from snapgen_deploy.report.views import ReportView

__all__ = ["ReportView", "collect", "render"]
