"""The mixture editor: a local page over a YAML file. See docs/editor.md.

- spans: where each value stands in the text
- document: operations -> splices of the text, verified
- files: the file on disk: line breaks, atomic save
- quantities: weight <-> share, epochs, hours
- catalogue: the data sets that can be named, and their sizes
- analyse: text -> what the page shows
- proposals: proposed weights, worked out beside the page
- frames: pictures, action histograms, the next samples
- server: HTTP on 127.0.0.1, guarded by security
- static: the page
"""
