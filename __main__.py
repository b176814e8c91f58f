"""`python -m torchppo`."""

from .pipelines.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
