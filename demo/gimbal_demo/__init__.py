"""The letters model's classes, pictures and nodes: what the templates that need no download are made of.

The one part of demo/ that users install. The demo's scripts import it too, without ComfyUI.
"""
