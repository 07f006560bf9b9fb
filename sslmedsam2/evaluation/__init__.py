"""How good a mask is against a reference, and the tables that say so."""
