"""The charts of results, in Vega-Lite: one module per kind, one function from result to charts."""
