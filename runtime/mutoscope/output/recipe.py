"""What a file says about how it was made."""

from __future__ import annotations

import json

from ..planning.plan import Plan
from ..version import __version__

# A path and a remark of the machine it was made on; the bundle's hash says the same for everybody.
_PRIVATE = ("bundle", "notes")


def recipe(plan: Plan) -> str:
    """The plan and the version as one line of JSON, in ASCII."""
    facts = {name: value for name, value in plan.to_dict().items() if name not in _PRIVATE}
    return json.dumps({"mutoscope": __version__, **facts})
