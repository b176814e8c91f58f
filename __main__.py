"""`python -m torchppo`."""

from .pipelines.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
