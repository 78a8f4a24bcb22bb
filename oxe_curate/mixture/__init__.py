"""What a mixture means: published ones, shares and epochs, checks, differences, and proposed weights.

Pure functions over a Mixture, the cards and (where there is one) the index; the command line and the editor show them.
"""
