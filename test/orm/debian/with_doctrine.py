# test/orm/debian/with_doctrine.py: Doctrine, by doctrine.php.
import os, subprocess
import bridge
from bridge import logging_to

command = ['php', os.path.join(os.path.dirname(__file__), 'doctrine.php')]
title, version = 'Doctrine DBAL', subprocess.run([*command, 'version'], capture_output=True, text=True).stdout.strip()


def Db(**where):
    return bridge.Db(command, **where)
