"""`python -m natsblob`"""

from __future__ import annotations

from natsblob.cli import main

if __name__ == "__main__":
    main()
