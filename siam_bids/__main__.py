"""`python -m siam_bids` is `siam-bids`."""

from siam_bids.cli import main

raise SystemExit(main())
