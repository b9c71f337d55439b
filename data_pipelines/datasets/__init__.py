"""What the files of each dataset mean, and what is wrong with them."""
