"""Mixtures: published ones, shares and epochs, sampling, checks, differences, and proposed weights.

Pure functions of a Mixture, the cards and, if there is one, the index. The command line and the editor show them.
"""
