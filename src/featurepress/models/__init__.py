"""Models, from a name to a file that a backbone runs.

catalog      from what people ask for to a card
card         what is known of a model that is ready
zoo, files, hub    where models come from: Keras Applications, the user's own files, a hub
weights      downloads, checked and pinned
guard        looks at a file before any library reads it
conversion, graph, transpositions    make a model ready; they run in a child process
reference    the features as the library computes them that a model comes from; in a child process, for verify
store        where everything lies
"""
