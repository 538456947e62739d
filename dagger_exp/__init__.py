"""Train multi-turn LLM agents with DAgger and its neighbours: every method is a Hydra config."""

import os

# Arrow's own allocator takes memory in pages of 2 MB, of which a table of small columns touches a dozen: on a virtual
# machine that costs more than all else that is done with it. Arrow reads this when it is first imported, and no later.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import dagger_exp.loading  # noqa: F401  before anything imports Lightning
