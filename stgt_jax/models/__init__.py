"""The model and its parts: vit -> graph_transformer -> qformer -> stgt, which joins them."""
