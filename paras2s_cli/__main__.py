"""`python -m paras2s_cli` is `paras2s`."""

import sys

from paras2s_cli.main import main

sys.exit(main())
