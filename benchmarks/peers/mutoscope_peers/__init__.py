"""What `mutoscope bench` compares with, and the models with random weights that it measures. Needs torch and others."""
