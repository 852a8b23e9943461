"""How a file says that it was made by a model: a plain tag, an invisible mark, and a signed manifest.

Each layer stands in files of its own, and each can be found without the others. Knows nothing of requests and plans.
"""
