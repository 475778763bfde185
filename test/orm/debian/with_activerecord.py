# test/orm/debian/with_activerecord.py: ActiveRecord, by activerecord.rb.
import os, subprocess
import bridge
from bridge import logging_to

command = ['ruby', os.path.join(os.path.dirname(__file__), 'activerecord.rb')]
title, version = 'ActiveRecord', subprocess.run([*command, 'version'], capture_output=True, text=True).stdout.strip()

notes = dict(bulk='by a second class without a primary key')


def Db(**where):
    return bridge.Db(command, **where)
