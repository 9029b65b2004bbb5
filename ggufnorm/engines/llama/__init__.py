"""llama.cpp, through llama-cpp-python, as an engine that can be watched node by node."""
