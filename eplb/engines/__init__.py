"""Drop-ins with the engines' own signatures."""
