"""A trained model as its authors publish it: found, validated and opened."""
