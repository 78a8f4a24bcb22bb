"""The mixture editor: a local web page for a YAML file. See docs/editor.md.

- spans: the position of each value in the text
- document: operations -> splices of the text, verified
- files: the file on disk: line breaks, atomic save
- quantities: weight <-> share, epochs, hours
- catalogue: the data sets that can be named, and their sizes
- analyse: text -> what the page shows
- proposals: proposed weights, computed in the background
- frames: images, action histograms, the next samples
- server: HTTP on 127.0.0.1, guarded by security
- static: the page
"""
