"""The embedded world: sentences, answers and what fits what; a renderer, a codec, and the judge that knows them.

Nothing outside this package imports it: recipes reach it by the name `pocket`.
"""
