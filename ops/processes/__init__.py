"""Several worker processes under one: started, watched, started again, ended together, with one HTTP address."""
