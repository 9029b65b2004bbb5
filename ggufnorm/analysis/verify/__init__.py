"""``verify``: is a file exactly what llama-quantize makes of another?"""
