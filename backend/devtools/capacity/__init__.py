"""How many workers and hosts a number of images a day needs: figures of this machine."""
