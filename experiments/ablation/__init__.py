"""The ablation: what the graph and CSAL bring, over several seeds, on the built-in clips of `crowded_shapes`.

ablate -> side_by_side -> training -> measure    each arm with each seed is one training and one file of results
       -> summary                                tables of all such files
"""
