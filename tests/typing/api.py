"""The public names as a user's type checker sees them. Only pyright runs over this file.

Each public verb gets a line here whose inferred type is written out with `assert_type`.
"""

import tillroll

public_names: list[str] = tillroll.__all__
