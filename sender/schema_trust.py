"""The tables of trust: what is secret, who may do what, what was done by whom.

As in `schema.py`: only the `store*` modules and `queries.py` speak SQL, times are unix seconds.
"""

from __future__ import annotations

from trainforge.sender.schema import metadata

__all__ = ["metadata"]
