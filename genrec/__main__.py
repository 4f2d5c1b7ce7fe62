"""``python -m genrec``, which is what ``accelerate launch -m genrec`` starts."""

import sys

from genrec.cli import main

sys.exit(main())
