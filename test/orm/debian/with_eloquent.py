# test/orm/debian/with_eloquent.py: Eloquent, by eloquent.php.
import os, subprocess
import bridge
from bridge import logging_to

command = ['php', os.path.join(os.path.dirname(__file__), 'eloquent.php')]
title, version = 'Eloquent', subprocess.run([*command, 'version'], capture_output=True, text=True).stdout.strip()

notes = dict(bulk='one INSERT per object, in one transaction')


def Db(**where):
    return bridge.Db(command, **where)
