"""The model, part by part: vit -> graph_transformer -> qformer -> stgt, the whole."""
