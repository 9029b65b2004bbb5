"""``python -m ggufnorm``: the command ``ggufnorm``."""

from ggufnorm.entry import main

if __name__ == "__main__":
    main()
