"""Mistakes that a type checker must find, one on each line that says so; read by mypy, never run."""

import kmed

kmed.train(epoch=3)  # mistake: an argument that does not exist
kmed.list_models()[0].folder  # mistake: a name is a text  # noqa: B018
kmed.export("run", tolerance="much")  # mistake: a text for a number
kmed.load_table("data").count()  # mistake: the method is called counts
kmed.evaluates("run")  # mistake: no such function
