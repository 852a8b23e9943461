"""Values as people write them, and the ranges that they must keep."""
