"""A package behind HTTP: the Open Inference Protocol, and for decoders the chat-completions form with streaming.

inference.py    bytes to arrays and back, as the protocol writes them; everything that a client may send is checked
batching.py     requests that wait go through the graph together, by tokens
completions.py  one generation after the other, token by token
app.py          the routes; limits.py: what they refuse; metrics.py: what they count
"""
