"""How good a model is: sets measured row by row, with intervals; passages put before questions."""
