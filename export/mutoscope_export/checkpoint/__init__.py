"""A trained model as its authors publish it: found, judged and opened."""
