"""llama.cpp, through llama-cpp-python, as an engine whose every node can be observed."""
