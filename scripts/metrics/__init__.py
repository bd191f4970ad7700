"""How good a mask is: scores of one label in mm and ml, and tables of them."""
