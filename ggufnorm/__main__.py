"""``python -m ggufnorm``: the command ``ggufnorm``."""

from ggufnorm.cli.main import main

if __name__ == "__main__":
    main()
