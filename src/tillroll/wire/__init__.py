"""What travels over HTTP: bodies in, answers and problems out, and the one refusal table.

`bodies` are what may be asked, `answers` what is answered, `problems` every no with its status.
The server and its description read them; nothing here knows of sockets, routes or keys.
"""
