"""The bundle for the web, which is drawn with here, too."""

from tests.apps.conftest import bundle as bundle
from tests.cli.conftest import checkpoint as checkpoint
