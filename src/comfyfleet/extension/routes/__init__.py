"""HTTP routes: who may ask, what handlers get and give, and a file for each subject."""
